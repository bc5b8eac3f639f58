"""A real server beside its simulation: the same arrivals and kinds, the costs measured before and after the load.

Nothing of the load itself enters the simulation but its schedule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.card import ModelCard
from server.config import Limits
from server.loop.sizes import RowSizes

from ..environment import stolen_seconds
from ..load.plan import LoadPlan
from ..load.run import run_load, schedule_of
from ..metrics_page import read_metrics, total
from ..mix import parse_mix
from ..percentiles import percentile
from ..schedule import Poisson, Schedule
from ..targets import NativeTarget
from .costs import Costs
from .fleet import Fleet, Run, simulate
from .traffic import CompiledCall

SHARES = (50.0, 99.0)
REPETITIONS = 5
"""Simulations of each schedule, as each draws steps and delays anew."""


@dataclass(frozen=True)
class CheckPlan:
    """What to send. utilisation: share of the time that a step is to run, by the simulation; it gives the rate.

    rate: requests a second, in its place. duration, warmup: seconds of each load. seeds: one load each.
    """

    mix: str
    utilisation: float = 0.65
    rate: float | None = None
    duration: float = 30.0
    warmup: float = 3.0
    seeds: tuple[int, ...] = (1, 2, 3)
    timeout: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.utilisation < 1:
            raise ValueError(f"utilisation: must be within (0, 1), got {self.utilisation:g}")
        if self.rate is not None and not self.rate > 0:
            raise ValueError(f"check_rate: must be positive, got {self.rate:g}")
        if not (0 < self.duration <= 3600 and 0 <= self.warmup <= 3600):
            raise ValueError(f"check_seconds: must be within (0, 3600], got {self.duration:g}")
        if not self.seeds:
            raise ValueError("check_seeds: must hold at least one")


@dataclass(frozen=True)
class Pair:
    """One figure, measured and simulated: of latencies in seconds."""

    real: float
    simulated: float

    @property
    def ratio(self) -> float:
        """Of the simulated one to the real one."""
        return self.simulated / self.real


@dataclass(frozen=True)
class Comparison:
    """Of one load, or of all of them together. latency: by kind ("all" first), then p50 and p99.

    busy: share of the time that a step ran. batch_rows: of all batches. stolen: cores that the machine's host gave to
    others during the load, which the simulation knows of from its probes only.
    """

    name: str
    sent: int
    failed: int
    latency: dict[str, dict[str, Pair]]
    busy: Pair
    batch_rows: Pair
    stolen: float


@dataclass(frozen=True)
class Measured:
    """A real load.

    latency: `(requests,)` seconds, NaN where it failed. busy: device seconds. batches, rows: run. stolen: core seconds.
    """

    schedule: Schedule
    latency: NDArray[np.float64]
    busy: float
    batches: float
    rows: float
    stolen: float = 0.0


def one_server(costs: Costs, calls: Sequence[CompiledCall], cards: Mapping[str, ModelCard]) -> Fleet:
    """The fleet of one server with the limits that servers have by default."""
    limits = Limits()
    capacities = {call.model: RowSizes.of(cards[call.model.name]).slots(limits) for call in calls}
    return Fleet("round-robin", 1, 1, limits, capacities, costs)


def rate_for(utilisation: float, fleet: Fleet, calls: Sequence[CompiledCall]) -> float:
    """The rate at which a step runs for that share of the time, by bisection to one percent."""
    low, high = 0.0, 1.0
    while _busy(high, fleet, calls) < utilisation:
        low, high = high, 2.0 * high
    while high - low > 0.01 * high:
        middle = (low + high) / 2.0
        if _busy(middle, fleet, calls) < utilisation:
            low = middle
        else:
            high = middle
    return float(f"{high:.3g}")


def _busy(rate: float, fleet: Fleet, calls: Sequence[CompiledCall]) -> float:
    seconds = 3000 / rate
    schedule = Poisson(rate).schedule(seconds, [call.weight for call in calls], seed=0)
    run = simulate(fleet, calls, schedule, duration=seconds)
    return run.tally.busy[0] / seconds


def send_load(plan: CheckPlan, rate: float, seed: int, address: str, metrics_address: str) -> Measured:
    """Send one load to a running server.

    Raises:
        TargetError: the server does not answer. MixError: it cannot serve the mix.
    """
    load = LoadPlan(plan.mix, Poisson(rate), plan.duration, plan.warmup, seed, plan.timeout)
    before, stolen = _ran(metrics_address), stolen_seconds()
    _, outcomes = run_load(load, NativeTarget(address))
    stolen = stolen_seconds() - stolen
    busy, batches, rows = (b - a for a, b in zip(before, _ran(metrics_address), strict=True))
    latency = np.array([outcome.latency if outcome.ok else np.nan for outcome in outcomes])
    return Measured(schedule_of(load, parse_mix(plan.mix)), latency, busy, batches, rows, stolen)


def _ran(metrics_address: str) -> tuple[float, float, float]:
    """Device seconds, batches and network rows of a server so far."""
    page = read_metrics(metrics_address)
    names = ("fewstep_step_seconds_sum", "fewstep_batch_rows_count", "fewstep_batch_rows_sum")
    seconds, batches, rows = (total(page, name) for name in names)
    return seconds, batches, rows


def simulate_again(plan: CheckPlan, schedule: Schedule, fleet: Fleet, calls: Sequence[CompiledCall]) -> list[Run]:
    """The same arrivals and kinds in the simulation, some times over."""
    whole = plan.warmup + plan.duration
    return [
        simulate(fleet, calls, schedule, duration=whole, timeout=plan.timeout, seed=seed) for seed in range(REPETITIONS)
    ]


def compare(
    name: str, plan: CheckPlan, calls: Sequence[CompiledCall], loads: Sequence[tuple[Measured, Sequence[Run]]]
) -> Comparison:
    """Put loads and their simulations side by side, as one. Latencies of requests that failed are left out."""
    real = np.concatenate([load.latency for load, _ in loads])
    kind = np.concatenate([load.schedule.kind for load, _ in loads])
    counted = np.concatenate([load.schedule.at >= plan.warmup for load, _ in loads])
    simulated = [np.concatenate([_in_time(runs[i]) for _, runs in loads]) for i in range(REPETITIONS)]
    latency = {}
    for index, label in [(None, "all"), *enumerate(call.name for call in calls)]:
        which = counted if index is None else counted & (kind == index)
        latency[label] = {
            f"p{share:g}": Pair(
                _percentile(real[which], share),
                float(np.mean([_percentile(values[which], share) for values in simulated])),
            )
            for share in SHARES
        }
    whole = (plan.warmup + plan.duration) * len(loads)
    tallies = [run.tally for _, runs in loads for run in runs]
    return Comparison(
        name=name,
        sent=int(counted.sum()),
        failed=int(np.isnan(real[counted]).sum()),
        latency=latency,
        busy=Pair(
            sum(load.busy for load, _ in loads) / whole, sum(tally.busy[0] for tally in tallies) / whole / REPETITIONS
        ),
        batch_rows=Pair(
            sum(load.rows for load, _ in loads) / max(1.0, sum(load.batches for load, _ in loads)),
            sum(tally.rows.total() for tally in tallies) / max(1, sum(tally.batches.total() for tally in tallies)),
        ),
        stolen=sum(load.stolen for load, _ in loads) / whole,
    )


def _in_time(run: Run) -> NDArray[np.float64]:
    return np.where(run.reason == 0, run.latency, np.nan)


def _percentile(values: NDArray[np.float64], share: float) -> float:
    return percentile(values[~np.isnan(values)], share)
