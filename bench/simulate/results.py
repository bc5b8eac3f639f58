"""What a simulated run came to: latency by kind, what was answered in time, and how busy the replicas were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..percentiles import percentiles
from .fleet import Fleet, Run
from .traffic import CompiledCall

SHARES = (50.0, 90.0, 99.0, 99.9)


@dataclass(frozen=True)
class KindResult:
    """One kind of call. latency: seconds, of those answered in time. failed: by reason."""

    name: str
    sent: int
    ok: int
    failed: dict[str, int]
    latency: dict[str, float]


@dataclass(frozen=True)
class Spread:
    """Of one value for each replica."""

    mean: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(float(np.mean(values)), float(min(values)), float(max(values)))


@dataclass(frozen=True)
class FleetResult:
    """One fleet under one load, over the measured window. Rates are requests a second, times seconds.

    goodput: answered in time, by their arrival. device, host: share of the time that a step ran, and that the thread
    of handlers worked. batch_rows: mean rows of a batch, by network. models: that a replica was asked for.
    request_microseconds, events: what the simulation itself took for each request.
    """

    policy: str
    replicas: int
    routers: int
    rate: float
    sent: int
    ok: int
    offered: float
    goodput: float
    failed: dict[str, int]
    latency: dict[str, float]
    kinds: tuple[KindResult, ...]
    device: Spread
    host: Spread
    batch_rows: dict[str, float]
    models: Spread
    events: float
    request_microseconds: float


def measured(run: Run) -> NDArray[np.bool_]:
    """Which requests count: those that arrived in the window."""
    at = run.schedule.at
    window: NDArray[np.bool_] = (at >= run.tally.begin) & (at < run.tally.end)
    return window


def summarise(fleet: Fleet, rate: float, calls: Sequence[CompiledCall], run: Run, wall_seconds: float) -> FleetResult:
    """Put a run together. wall_seconds: what it took."""
    counted = measured(run)
    window = run.tally.end - run.tally.begin
    kinds = tuple(_kind(call.name, run, counted & (run.schedule.kind == k)) for k, call in enumerate(calls))
    whole = _kind("", run, counted)
    tally, requests = run.tally, max(1, len(run.schedule))
    return FleetResult(
        policy=fleet.policy,
        replicas=fleet.replicas,
        routers=fleet.routers,
        rate=rate,
        sent=whole.sent,
        ok=whole.ok,
        offered=whole.sent / window,
        goodput=whole.ok / window,
        failed=whole.failed,
        latency=whole.latency,
        kinds=kinds,
        device=Spread.of([busy / window for busy in tally.busy]),
        host=Spread.of([seconds / run.seconds for seconds in run.host]),
        batch_rows={str(group): tally.rows[group] / tally.batches[group] for group in sorted(tally.batches)},
        models=Spread.of(run.models),
        events=run.events / requests,
        request_microseconds=1e6 * wall_seconds / requests,
    )


def _kind(name: str, run: Run, which: NDArray[np.bool_]) -> KindResult:
    in_time = which & (run.reason == 0)
    reasons = Counter(run.reason[which & ~in_time].tolist())
    return KindResult(
        name=name,
        sent=int(which.sum()),
        ok=int(in_time.sum()),
        failed={run.reasons[reason]: count for reason, count in sorted(reasons.items())},
        latency=percentiles(run.latency[in_time], SHARES),
    )
