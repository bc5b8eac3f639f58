"""What was measured, and which goals it meets."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np

from ..environment import Environment
from ..percentiles import percentile
from .cases import Case
from .served import Taken

UNET = "ddpm-cifar10"


@dataclass(frozen=True, slots=True)
class Goal:
    """Something that a number has to be. value: None where it was not measured. bound: at most, or at least."""

    name: str
    value: float | None
    bound: float
    at_most: bool = True

    @property
    def met(self) -> bool | None:
        """None where it was not measured."""
        if self.value is None:
            return None
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    @property
    def verdict(self) -> str:
        """In a word or two."""
        return {True: "met", False: "missed", None: "not measured"}[self.met]

    @property
    def target(self) -> str:
        """The bound in words."""
        return f"{'<=' if self.at_most else '>='} {self.bound:g}"


FOUR_STEPS = Goal("4-step sample, batch 1, 35.7M U-Net, over 4 graph-replayed forwards", None, 1.10)


@dataclass(frozen=True, slots=True)
class Quartiles:
    """Of a ratio over pairs of calls, one right after the other."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        return cls(*(float(value) for value in np.percentile(values, (25, 50, 75))))


@dataclass(frozen=True, slots=True)
class Timing:
    """What one contender took for a case; seconds a request.

    contender: `served` by the server's engine, `bare`: its networks and nothing else, `eager` and `compiled`: plain
    torch loops. over_bare: of each call to the bare one beside it. network_share, update_share: of the served request's
    steps, as the engine says; None where it does not.
    """

    engine: str
    contender: str
    calls: int
    best: float
    p50: float
    p99: float
    over_bare: Quartiles | None = None
    network_share: float | None = None
    update_share: float | None = None

    @classmethod
    def of(
        cls,
        engine: str,
        contender: str,
        taken: Mapping[int, Taken],
        *,
        bare: Mapping[int, Taken] = MappingProxyType({}),
        networks: bool = False,
    ) -> Timing:
        """taken: the calls, by the turn in which each was made. bare: the bare loop's; none for itself.

        networks: whether the engine tells how long its networks took.
        """
        seconds = [call.seconds for call in taken.values()]
        ratios = [call.seconds / bare[turn].seconds for turn, call in taken.items() if turn in bare]
        shares = [call.networks / call.steps for call in taken.values() if networks and call.steps > 0]
        share = statistics.median(shares) if shares else None
        return cls(
            engine,
            contender,
            len(seconds),
            min(seconds),
            percentile(seconds, 50),
            percentile(seconds, 99),
            Quartiles.of(ratios) if ratios else None,
            share,
            None if share is None else 1.0 - share,
        )


@dataclass(frozen=True, slots=True)
class Cell:
    """A case and what everybody took for it.

    nfe, gradient_passes: of the case's program. floor: seconds in which the device could read the weights that often,
    at its measured bandwidth. left_out: contenders that were not measured, and why.
    """

    case: Case
    nfe: int
    gradient_passes: int
    timings: tuple[Timing, ...]
    floor: float | None = None
    left_out: dict[str, str] = field(default_factory=dict)

    def timing(self, contender: str, engine: str | None = None) -> Timing | None:
        """The first timing of a contender, with one engine or any."""
        found = (t for t in self.timings if t.contender == contender and engine in (None, t.engine))
        return next(found, None)

    def rate(self, timing: Timing) -> float:
        """Samples, images scored, or Langevin steps (of one row each) a second at the median."""
        return self.case.rows * (self.case.steps if self.case.task == "langevin" else 1) / timing.p50


@dataclass(frozen=True, slots=True)
class EndToEnd:
    """A measurement.

    device: `cpu`, or the GPU's name. copy_bandwidth: bytes read and written a second by a large copy on the device,
    None on the CPU. parameters: by model, of the networks run. compile_seconds: by model, of torch.compile. left_out:
    models or engines that could not be measured, and why. load_after: average over one minute when all was done.
    stolen_seconds: core seconds that the machine's host ran others in.
    """

    environment: Environment
    device: str
    precision: str
    threads: int
    budget_seconds: float
    seconds: float
    copy_bandwidth: float | None
    parameters: dict[str, int]
    compile_seconds: dict[str, float]
    cells: tuple[Cell, ...]
    left_out: dict[str, str]
    load_after: float
    stolen_seconds: float

    def cells_of(self, model: str) -> list[Cell]:
        return [cell for cell in self.cells if cell.case.model == model]

    def goals(self) -> list[Goal]:
        """Those of the issue that such a measurement can tell of."""
        if self.device != "cpu":
            return [replace(FOUR_STEPS, value=self._four_steps())]
        served = [t for cell in self.cells_of(UNET) if (t := cell.timing("served", "onnxruntime"))]
        over = [t.over_bare.median for t in served if t.over_bare is not None]
        shares = [t.update_share for t in served if t.update_share is not None]
        return [
            Goal("served over the bare loop, 35.7M U-Net, median of the cases", _median(over), 1.03),
            Goal("CPU update's share of a step, 35.7M U-Net, median of the cases", _median(shares), 0.02),
        ]

    def _four_steps(self) -> float | None:
        for cell in self.cells_of(UNET):
            timing = cell.timing("served")
            if (cell.case.steps, cell.case.rows) == (4, 1) and timing is not None and timing.over_bare is not None:
                return timing.over_bare.median
        return None


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
