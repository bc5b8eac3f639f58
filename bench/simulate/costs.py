"""What a server's work costs: measured seconds of its steps, of its host, and of the way to it and back.

A file of costs is JSON (`Costs`), written by `python -m bench simulate --measure`, or by hand: one number for each of
two batch sizes describes a step as well as `server.loop.cost` can.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct


class CostError(ValueError):
    """Costs that cannot be used; the message names the field, or what has no cost."""


def _check_positive(field: str, *values: float) -> None:
    for value in values:
        if not 0.0 < value < math.inf:
            raise ValueError(f"{field} must be positive and finite, got {value}")


def _check_not_negative(field: str, *values: float) -> None:
    for value in values:
        if not 0.0 <= value < math.inf:
            raise ValueError(f"{field} must be finite and not negative, got {value}")


class Group(NamedTuple):
    """What a batch is of: the model's name, its network, and the kind of update."""

    model: str
    network: str
    kind: str

    def __str__(self) -> str:
        return f"{self.model}/{self.network} ({self.kind})"


class StepCost(Struct, frozen=True, forbid_unknown_fields=True):
    """One step of a batch. rows: batch sizes, increasing. seconds: for each size what was measured, one or more."""

    model: str
    network: str
    kind: str
    rows: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]

    @property
    def group(self) -> Group:
        return Group(self.model, self.network, self.kind)

    def __post_init__(self) -> None:
        if not self.rows or self.rows[0] < 1 or any(a >= b for a, b in pairwise(self.rows)):
            raise ValueError(f"{self.group}: rows must be whole numbers from 1, increasing, got {self.rows}")
        if len(self.seconds) != len(self.rows) or not all(self.seconds):
            raise ValueError(f"{self.group}: seconds must hold at least one value for each of {len(self.rows)} sizes")
        _check_positive(f"{self.group}: seconds", *(value for values in self.seconds for value in values))


class HostCost(Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds that the host's one thread of handlers works on a request: before it is submitted, and after it is done.

    row: in addition, for each sample or image.
    """

    receive: float = 0.0
    answer: float = 0.0
    row: float = 0.0

    def __post_init__(self) -> None:
        _check_not_negative("host", self.receive, self.answer, self.row)


class Costs(Struct, frozen=True, forbid_unknown_fields=True):
    """All costs of one kind of server. All times are in seconds.

    steps: of every network and kind of update that requests use. sample, score: the host's work on a request.
    between: from the end of a batch to the start of the next one, where rows wait. wake: by how much the first step
    after a pause is longer. delays: what else a request takes on its way there and back, one of them for each;
    busy_delays: the same while the device runs, which the way shares the machine with (empty: no different).
    interference: by how much the device's work takes longer for a second of the host's beside it, as both are threads
    of one process, and share its lock and the machine's cores.
    spells: by what factor the machine's steps are longer than on average, in stretches of `spell_seconds` that followed
    each other when it was measured; replayed, from a place of its own for each server.
    source: where the numbers come from.
    """

    steps: tuple[StepCost, ...]
    sample: HostCost = HostCost()
    score: HostCost = HostCost()
    between: float = 0.0
    wake: float = 0.0
    delays: tuple[float, ...] = (0.0,)
    busy_delays: tuple[float, ...] = ()
    interference: float = 0.0
    spells: tuple[float, ...] = (1.0,)
    spell_seconds: float = 1.0
    source: dict[str, Any] = {}

    def __post_init__(self) -> None:
        groups = [step.group for step in self.steps]
        for group in groups:
            if groups.count(group) > 1:
                raise ValueError(f"steps: {group} stands twice")
        if not self.delays:
            raise ValueError("delays: must hold at least one value")
        for name in ("between", "wake", "interference"):
            _check_not_negative(name, getattr(self, name))
        _check_not_negative("delays", *self.delays)
        _check_not_negative("busy_delays", *self.busy_delays)
        if not self.spells:
            raise ValueError("spells: must hold at least one value")
        _check_positive("spells", *self.spells)
        _check_positive("spell_seconds", self.spell_seconds)

    def table(self, group: Group) -> StepTable:
        """Raises CostError: the file has no such step."""
        for step in self.steps:
            if step.group == group:
                return StepTable(step)
        known = ", ".join(str(step.group) for step in self.steps) or "none"
        raise CostError(f"costs: no step of {group}; there are: {known}")


def load_costs(path: Path) -> Costs:
    """Read a file of costs.

    Raises:
        CostError: no such file, or a field is wrong; names both.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Costs)
    except FileNotFoundError:
        raise CostError(f"costs: no file {path}; measure one with --measure") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise CostError(f"costs: {path}: {error}") from error


def save_costs(path: Path, costs: Costs) -> None:
    """Write a file of costs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(costs), indent=1) + b"\n")


class StepTable:
    """Seconds of a step of one group by batch size: drawn from what was measured, or on average.

    Between two measured sizes both are drawn at the same place of their order, and what comes is in between; beyond
    the largest the last two go on in a straight line, below the smallest the smallest stands.
    """

    def __init__(self, step: StepCost) -> None:
        self._rows = step.rows
        self._sorted = [sorted(values) for values in step.seconds]
        self._means = [sum(values) / len(values) for values in step.seconds]
        self._places: dict[int, tuple[int, int, float]] = {}

    def mean(self, rows: int) -> float:
        """The average seconds of a batch of so many network rows."""
        low, high, share = self._place(rows)
        return max(self._means[low], self._means[low] + share * (self._means[high] - self._means[low]))

    def draw(self, rows: int, random: Callable[[], float]) -> float:
        """Seconds of one batch. random: uniform in [0, 1)."""
        low, high, share = self._place(rows)
        where = random()
        values = self._sorted[low]
        seconds = values[int(where * len(values))]
        if share:
            values = self._sorted[high]
            # Beyond the largest size, noise must not turn a step shorter than that of a smaller batch.
            seconds = max(seconds, seconds + share * (values[int(where * len(values))] - seconds))
        return seconds

    def _place(self, rows: int) -> tuple[int, int, float]:
        """The two sizes that it lies between, and how far from the first to the second (beyond 1 past the last)."""
        place = self._places.get(rows)
        if place is None:
            place = self._places[rows] = self._find(rows)
        return place

    def _find(self, rows: int) -> tuple[int, int, float]:
        sizes = self._rows
        if rows <= sizes[0] or len(sizes) == 1:
            return 0, 0, 0.0
        high = min(bisect_left(sizes, rows), len(sizes) - 1)
        return high - 1, high, (rows - sizes[high - 1]) / (sizes[high] - sizes[high - 1])
