"""How much of the time the device works while many callers keep the server's engine busy."""

from __future__ import annotations

import math
import queue
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from time import perf_counter

import torch
from torch.autograd import DeviceType

from models.bundle import Bundle
from models.program import Program
from models.samplers import SampleOptions, compile_sample
from server.backend import Backend
from server.config import Limits
from server.errors import ServerError
from server.loop.protocols import Runner, Step
from server.types import Batch

from ..end_to_end.loaded import open_on_device
from ..end_to_end.served import Served

STEPS = (1, 2, 4, 8)
CALLERS = 24
ROWS = 4
"""Of each caller's requests: more rows in flight than a batch has, so that one always waits."""

WARM_UP = 0.25
"""Of the time: until the batches are as full as they get."""

PROFILED = 0.5
"""Seconds with the profiler, which slows the host down and takes longer than that to read."""


@dataclass(frozen=True, slots=True)
class Busy:
    """What a while under load showed.

    seconds: on the clock, from the end of a batch to that of the last one. rows: of a batch, mean. rate: samples a
    second.
    share: of the seconds, the device's for the batches in between, by the events around each. That is an upper bound,
    as an event passes when the work before it is done, however late the work behind it is given.
    kernels: the share of the time from the first kernel or copy to the last in which one ran, as the profiler saw it
    in a while of its own; None where there is none.
    """

    model: str
    seconds: float
    share: float
    kernels: float | None
    batches: int
    rows: float
    rate: float


class Meter:
    """A backend of the server whose runners' steps are counted. Otherwise as the one within."""

    def __init__(self, backend: Backend, clock: Callable[[], float]) -> None:
        self._backend, self._clock = backend, clock
        self.device, self.depth, self.turn = backend.device, backend.depth, backend.turn
        self.at_once_seconds = backend.at_once_seconds
        self.invariance_known = backend.invariance_known
        self.reset()

    def runner(self, bundle: Bundle, limits: Limits, fixed_rows: Mapping[str, int]) -> Runner:
        """See `server.backend.Backend.runner`."""
        return _MeteredRunner(self._backend.runner(bundle, limits, fixed_rows), self)

    def reset(self) -> None:
        """Count what is behind the next batch that ends: what ran before now would be counted whole otherwise."""
        self.seconds, self.batches, self.rows = 0.0, 0, 0
        self._began: float | None = None
        self._ended = 0.0

    def count(self, seconds: float, rows: int) -> None:
        """A batch has ended, which took the device so many seconds."""
        self._ended = self._clock()
        if self._began is None:
            self._began = self._ended
            return
        self.seconds += seconds
        self.batches += 1
        self.rows += rows

    @property
    def elapsed(self) -> float:
        """On the clock, for the batches that were counted."""
        return 0.0 if self._began is None else self._ended - self._began


class _MeteredRunner:
    def __init__(self, runner: Runner, meter: Meter) -> None:
        self._runner, self._meter = runner, meter
        self.capacity, self.warm_up = runner.capacity, runner.warm_up

    def enqueue(self, batch: Batch) -> Step:
        return _MeteredStep(self._runner.enqueue(batch), self._meter, batch.network_rows)


class _MeteredStep:
    def __init__(self, step: Step, meter: Meter, rows: int) -> None:
        self._step, self._meter, self._rows = step, meter, rows

    def finish(self) -> float:
        seconds = self._step.finish()
        self._meter.count(seconds, self._rows)
        return seconds


def measure_busy(
    bundle: Bundle,
    device: torch.device,
    seconds: float,
    *,
    callers: int = CALLERS,
    clock: Callable[[], float] = perf_counter,
) -> Busy:
    """Let callers ask for samples of 1 to 8 steps, each again as soon as it has its answer.

    Raises:
        EngineError, BundleError: the model cannot run there. ServerError: a request failed. RuntimeError: the batches
            take too long for the time.
    """
    meter = Meter(open_on_device("torch", device).backend, clock)
    programs = [compile_sample(bundle.card, SampleOptions(sampler="ddim", steps=steps)) for steps in STEPS]
    with Served(bundle, meter) as served:
        load = _Callers(served, programs, callers)
        load.run(WARM_UP * seconds, clock)
        meter.reset()
        began, before = clock(), load.answered
        load.run((1.0 - WARM_UP) * seconds, clock)
        rate = ROWS * (load.answered - before) / (clock() - began)
        took, spent, batches, rows = meter.elapsed, meter.seconds, meter.batches, meter.rows
        if not batches:
            raise RuntimeError(f"no two batches ended within {seconds:.0f} s")
        kernels = None
        if device.type == "cuda":
            kernels = kernel_share(lambda: load.run(PROFILED, clock))
    return Busy(bundle.card.name, took, spent / took, kernels, batches, rows / batches, rate)


def kernel_share(work: Callable[[], None]) -> float | None:
    """Of the time between the first and the last thing that the GPU runs meanwhile, given by any thread, the share in
    which it runs one; None where nothing is seen."""
    from torch.profiler import ProfilerActivity, profile, supported_activities

    if ProfilerActivity.CUDA not in supported_activities():
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events() or ()
        if event.device_type == DeviceType.CUDA
    ]
    if not spans:
        return None
    return covered(spans) / (max(end for _, end in spans) - min(start for start, _ in spans))


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, reached = 0.0, -math.inf
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


class _Callers:
    """Requests in flight, as many as there are callers."""

    def __init__(self, served: Served, programs: list[Program], count: int) -> None:
        self._served, self._programs = served, programs
        self._ended: queue.SimpleQueue[ServerError | None] = queue.SimpleQueue()
        self._random = random.Random(0)
        self.answered = 0
        for _ in range(count):
            self._ask()

    def _ask(self) -> None:
        program = self._random.choice(self._programs)
        seed = self._random.randrange(1 << 62)
        self._served.engine.submit(self._served.job(program, ROWS, None, seed, self._ended))

    def run(self, seconds: float, clock: Callable[[], float]) -> None:
        """Ask again for every answer, until the time is up.

        Raises:
            ServerError: a request failed.
        """
        deadline = clock() + seconds
        while (left := deadline - clock()) > 0:
            try:
                error = self._ended.get(timeout=left)
            except queue.Empty:
                return
            if error is not None:
                raise error
            self.answered += 1
            self._ask()
