"""What a measurement of the kernels found."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from ..environment import Environment

LARGE = 16_000_000
"""Bytes from which on a launch is held against the copy bandwidth: below it is latency that counts."""
OF_COPY, OVER_EAGER, OVER_COMPILED = 0.9, 3.0, 1.2


@dataclass(frozen=True, slots=True)
class KernelTime:
    """One case.

    seconds: of a launch, by contender: `ours`, `eager`, `compiled`, and on a GPU `copy`, a plain copy that reads and
    writes as many bytes. errors: of those that failed.
    """

    kernel: str
    variant: str
    rows: int
    shape: tuple[int, ...]
    type: str
    bytes: int
    seconds: dict[str, float]
    errors: dict[str, str]

    @property
    def bandwidth(self) -> float | None:
        """Bytes a second of ours."""
        return self.bytes / self.seconds["ours"] if "ours" in self.seconds else None

    def over(self, contender: str) -> float | None:
        """How many times as long as ours another one takes."""
        if contender not in self.seconds or "ours" not in self.seconds:
            return None
        return self.seconds[contender] / self.seconds["ours"]


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal that many cases are held against. met: how many of the cases reach the bound."""

    name: str
    bound: float
    cases: int
    met: int
    worst: float
    median: float


@dataclass(frozen=True, slots=True)
class KernelsResult:
    """device: its name. fused: whether ours are the kernels, and not their twins on the CPU.

    copy_bandwidth: bytes read and written a second by a large copy on the device; None on the CPU.
    left_out: cases for which no time was left. not_compiled: those of the others that had none for torch.compile.
    """

    environment: Environment
    device: str
    fused: bool
    copy_bandwidth: float | None
    times: tuple[KernelTime, ...]
    left_out: int
    not_compiled: int

    @property
    def failed(self) -> bool:
        """Whether ours could not be measured somewhere."""
        return any("ours" in time.errors for time in self.times)

    def of_copy(self, time: KernelTime) -> float | None:
        """A case's share of the copy bandwidth."""
        return time.bandwidth / self.copy_bandwidth if self.copy_bandwidth and time.bandwidth else None

    def goals(self) -> tuple[Goal, ...]:
        """The kernels' goals with what was reached; none where no kernel was measured."""
        if not self.fused:
            return ()
        large = [time for time in self.times if time.bytes >= LARGE]
        # A gather without a start is one pass for torch.compile, too, and two of the bytes for eager torch.
        updates = [time for time in self.times if time.kernel != "gather"]
        goals = (
            _goal("share of the copy bandwidth, from 16 MB", OF_COPY, large, self.of_copy),
            _goal("updates, times as fast as eager torch", OVER_EAGER, updates, lambda time: time.over("eager")),
            _goal("updates, times as fast as torch.compile", OVER_COMPILED, updates, lambda t: t.over("compiled")),
        )
        return tuple(goal for goal in goals if goal is not None)


def _goal(
    name: str, bound: float, times: list[KernelTime], number: Callable[[KernelTime], float | None]
) -> Goal | None:
    reached = [value for value in map(number, times) if value is not None]
    if not reached:
        return None
    met = sum(value >= bound for value in reached)
    return Goal(name, bound, len(reached), met, min(reached), statistics.median(reached))
