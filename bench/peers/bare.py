"""No server: a loop in this process over the same engine, at whatever batch it is given. The ceiling."""

from __future__ import annotations

import time
from collections.abc import Callable

from .engine import Engine

Runner = Callable[[int], None]
"""Draws that many samples in one batch."""


def sampler_of(engine: Engine, sampler: str, steps: int) -> Runner:
    """Samples of one engine, each batch of new seeds."""
    drawn = 0

    def run(rows: int) -> None:
        nonlocal drawn
        engine.run([engine.sample_request(sampler, steps, range(drawn, drawn + rows))])
        drawn += rows

    return run


def throughput(run: Runner, rows: int, seconds: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """Samples a second of batches of `rows`, one after the other for some seconds, at least one."""
    started, done = clock(), 0
    while True:
        run(rows)
        done += rows
        taken = clock() - started
        if taken >= seconds:
            return done / taken
