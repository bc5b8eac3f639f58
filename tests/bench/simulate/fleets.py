"""Small fleets whose costs are known, for the tests of the simulation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.schedule import Poisson, Schedule
from bench.simulate.costs import Costs, Group, HostCost, StepCost
from bench.simulate.fleet import Fleet, Run, simulate
from bench.simulate.traffic import CompiledCall
from models.program import Line, Program, assign
from server.config import Limits
from server.types import ModelKey

MODELS = (ModelKey("a", 1), ModelKey("b", 1), ModelKey("c", 1))
UPDATE = (assign(),)


def call(
    steps: int = 1, model: ModelKey = MODELS[0], *, rows: int = 1, weight: float = 1.0, **given: Any
) -> CompiledCall:
    """A call of so many steps of the network `net`."""
    program = Program(0.0, 1.0, (Line("net", updates=UPDATE),) * steps)
    return CompiledCall(
        name=f"{model.name}:{steps}:{rows}",
        weight=weight,
        model=model,
        programs=(program,) * rows,
        row_bytes=8,
        priority=0,
        host=given.pop("host", HostCost()),
        host_rows=rows,
        lines={Group(model.name, "net", "ensemble"): steps * rows},
        **given,
    )


def costs(seconds: Sequence[float] = (1.0,), *, per_row: float = 0.0, models: int = 3, **given: Any) -> Costs:
    """A step takes one of `seconds`, and so much more for each row above the first."""
    steps = tuple(
        StepCost(key.name, "net", "ensemble", (1, 65), (tuple(seconds), tuple(s + 64 * per_row for s in seconds)))
        for key in MODELS[:models]
    )
    return Costs(steps, **given)


def fleet(policy: str, replicas: int, costs: Costs, *, routers: int = 1, slots: int = 256, **limits: Any) -> Fleet:
    """Servers with all models; no batch is cut for its time unless `step_seconds` says so."""
    bounds = Limits(**({"step_seconds": 1e9} | limits))
    return Fleet(policy, replicas, routers, bounds, dict.fromkeys(MODELS, slots), costs)


def at(*when: float, kinds: Sequence[int] | None = None) -> Schedule:
    """These arrivals, all of the first kind unless told."""
    kind = np.array(kinds if kinds is not None else [0] * len(when), dtype=np.int64)
    return Schedule(np.array(when), kind, np.arange(len(when)))


def run(
    fleet: Fleet,
    calls: Sequence[CompiledCall],
    rate: float,
    seconds: float,
    *,
    timeout: float | None = None,
    seed: int = 0,
) -> Run:
    """A Poisson load of the calls, all of which counts."""
    schedule = Poisson(rate).schedule(seconds, [call.weight for call in calls], seed)
    return simulate(fleet, calls, schedule, duration=seconds, timeout=timeout, seed=seed)
