"""Sends the load of a plan to a target, and puts together what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..mix import Kind, parse_mix
from ..schedule import Schedule, draw_kinds
from ..sender import HEAD_START, Outcome, Progress, no_progress, send, send_in_turns
from ..targets import Target
from .occupancy import Watch
from .plan import Clients, LoadPlan
from .result import LoadResult, summarise

IN_TURNS = 4096
"""Messages made for a closed loop, whose number nobody knows before; they are sent again after the last."""
WATCH_INTERVAL = 1.0


def run_load(
    plan: LoadPlan, target: Target, metrics_address: str | None = None, progress: Progress = no_progress
) -> tuple[LoadResult, list[Outcome]]:
    """Connect to a target, send it a load, and disconnect; see `measure`.

    Raises:
        TargetError: nothing answers there.
    """

    async def whole() -> tuple[LoadResult, list[Outcome]]:
        async with target:
            return await measure(plan, target, metrics_address, progress)

    return asyncio.run(whole())


async def measure(
    plan: LoadPlan,
    target: Target,
    metrics_address: str | None = None,
    progress: Progress = no_progress,
    watch_interval: float = WATCH_INTERVAL,
) -> tuple[LoadResult, list[Outcome]]:
    """Send a load to a connected target, and wait for all answers.

    metrics_address: HOST:PORT of the metrics page of a fewstep server; without it the result says nothing of batches.
    watch_interval: seconds between two looks at that page during the load, 0 for before and after it alone.

    Raises:
        MixError: the mix cannot be read, or the server cannot serve a part of it.
        TargetError: there is no metrics page at that address.
    """
    kinds = await target.prepare(parse_mix(plan.mix))
    server = {"protocol": target.name, **target.about, "models": {kind.name: kind.model for kind in kinds}}
    schedule = schedule_of(plan, kinds)
    messages = make_messages(target, kinds, schedule)
    watch = Watch(metrics_address, watch_interval) if metrics_address else None
    with watch or contextlib.nullcontext(), _without_collections():
        if isinstance(plan.arrivals, Clients):
            origin = time.monotonic()
            outcomes = await send_in_turns(
                *(target, messages, schedule.kind.tolist()),
                clients=plan.arrivals.clients,
                think=plan.arrivals.think,
                seconds=plan.seconds,
                timeouts=plan.timeouts(kinds),
                seed=plan.seed,
                progress=progress,
            )
        else:
            origin = time.monotonic() + HEAD_START
            outcomes = await send(
                *(target, messages, schedule),
                timeouts=plan.timeouts(kinds),
                max_open=plan.max_open,
                progress=progress,
            )
    outcomes.sort(key=lambda outcome: outcome.scheduled)
    batches, timeline = (watch.overall(), watch.timeline(origin)) if watch else ({}, [])
    return summarise(plan, kinds, outcomes, server, batches, timeline), outcomes


def schedule_of(plan: LoadPlan, kinds: Sequence[Kind]) -> Schedule:
    """The arrivals of a plan; of a closed loop the kinds and seeds of its turns, whose times mean nothing."""
    weights = [kind.weight for kind in kinds]
    if isinstance(plan.arrivals, Clients):
        return draw_kinds(np.zeros(IN_TURNS), weights, np.random.Generator(np.random.PCG64(plan.seed)))
    return plan.arrivals.schedule(plan.seconds, weights, plan.seed)


def make_messages(target: Target, kinds: Sequence[Kind], schedule: Schedule) -> list[Any]:
    """The message of each arrival, so that none is made while the clock runs."""
    pairs = zip(schedule.kind.tolist(), schedule.seed.tolist(), strict=True)
    return [target.message(kinds[kind], seed) for kind, seed in pairs]


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Keep what is there already out of the garbage collector's sight: to look through all messages takes it long."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
