"""`python -m bench soak`: steady load on a server of its own for minutes, and whether anything in it drifts.

A short ramp finds the rate at which the mix saturates the server; a share of it is then offered as an open loop, one
window after the other (between two windows all answers come in, for a fraction of a second). Each window gives
latencies, the server's memory, threads and descriptors, and how full its batches and its time were. The first quarter
of the windows is compared with the last. Exit code 1 where something grew beyond its bound.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import statistics
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .environment import describe_environment
from .footprint import Footprint, footprint
from .load import DEFAULT_MIX, MOST_REQUESTS, LoadPlan, run_load
from .metrics_page import read_metrics, total
from .mix import parse_mix
from .percentiles import percentiles
from .schedule import Poisson
from .server_process import ServerProcess
from .soak_result import Bounds, SoakResult, Window, drift_of
from .targets import NativeTarget

WINDOWS = 60
"""By default the time is cut into so many, of a second at least."""
SAMPLE_SECONDS = 0.5
FIRST_RATE = 20.0
SATURATED = 0.9
"""A server that answers less than this share of what is offered is at its capacity."""
LONGEST_MINUTES = 24 * 60.0


@dataclass(frozen=True)
class SoakPlan:
    """What to do. load: share of the capacity. window, ramp: seconds of a window and of a step of the ramp."""

    mix: str = DEFAULT_MIX
    minutes: float = 20.0
    load: float = 0.8
    window: float = 0.0
    ramp: float = 3.0
    timeout: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.minutes <= LONGEST_MINUTES:
            raise ValueError(f"minutes: must be above 0 and at most {LONGEST_MINUTES:g}, got {self.minutes}")
        if not 0 < self.load <= 2:
            raise ValueError(f"load: must be above 0 and at most 2, got {self.load}")
        for name in ("ramp", "timeout"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: must be positive and finite, got {getattr(self, name)}")
        if not 0 <= self.window <= 60 * self.minutes:
            raise ValueError(f"window: must be within 0..{60 * self.minutes:g} s, got {self.window}")

    @property
    def window_seconds(self) -> float:
        """Of one window; all of them together are at least the time asked for."""
        return self.window or min(60 * self.minutes, max(1.0, 60 * self.minutes / WINDOWS))

    @property
    def windows(self) -> int:
        """How many there are."""
        return math.ceil(60 * self.minutes / self.window_seconds - 1e-9)


def find_capacity(plan: SoakPlan, address: str, progress: Callable[[float], None] = lambda rate: None) -> float:
    """Requests a second that the server answers at most: the rate is doubled until it cannot keep up.

    Raises:
        ValueError: not one request was answered.
    """
    rate, capacity = FIRST_RATE, 0.0
    while rate * 2 * plan.ramp <= MOST_REQUESTS:
        progress(rate)
        ramp = LoadPlan(plan.mix, Poisson(rate), plan.ramp, warmup=plan.ramp / 6, seed=plan.seed, timeout=plan.timeout)
        result, _ = run_load(ramp, NativeTarget(address))
        capacity = max(capacity, result.achieved)
        if result.achieved < SATURATED * result.offered:
            break
        rate *= 2
    if capacity == 0:
        raise ValueError("load: the server answered no request within its time, so that there is no capacity to share")
    return capacity


class _Watch:
    """Looks at a process from a thread of its own, while the window runs."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._over = threading.Event()
        self.seen: list[Footprint] = []

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._look, name="footprint", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _look(self) -> None:
        while True:
            found = footprint(self._pid)
            if found is None:
                return
            self.seen.append(found)
            if self._over.wait(SAMPLE_SECONDS):
                return

    def median(self, name: str) -> float:
        """Of what was seen; NaN where there was nothing to see."""
        return statistics.median(getattr(found, name) for found in self.seen) if self.seen else math.nan


def run_window(plan: SoakPlan, server: ServerProcess, rate: float, index: int) -> Window:
    """Offer the load for one window and wait for all answers."""
    watch = _Watch(server.pid)
    before = read_metrics(server.metrics_address)
    load = LoadPlan(
        plan.mix, Poisson(rate), plan.window_seconds, warmup=0.0, seed=plan.seed + 1 + index, timeout=plan.timeout
    )
    with watch.watching():
        _, outcomes = run_load(load, NativeTarget(server.address))
    after = read_metrics(server.metrics_address)

    def spent(name: str) -> float:
        return total(after, name) - total(before, name)

    latency = percentiles([outcome.latency for outcome in outcomes if outcome.ok])
    batches = spent("fewstep_batch_rows_count")
    return Window(
        start=index * plan.window_seconds,
        sent=len(outcomes),
        failed=sum(not outcome.ok for outcome in outcomes),
        p50=latency["p50"],
        p99=latency["p99"],
        batch_rows=spent("fewstep_batch_rows_sum") / batches if batches else math.nan,
        busy=spent("fewstep_step_seconds_sum") / plan.window_seconds,
        rss_mb=watch.median("rss_mb"),
        threads=watch.median("threads"),
        descriptors=watch.median("descriptors"),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench soak`."""
    plan, bounds = SoakPlan(), Bounds()
    parser.add_argument("--repository", type=Path, required=True, help="the models to serve")
    parser.add_argument("--engine", default="onnxruntime", help="of the server, default %(default)s")
    parser.add_argument("--mix", default=plan.mix, help="kinds and weights, default %(default)s")
    parser.add_argument("--minutes", type=float, default=plan.minutes, help="default %(default)g")
    parser.add_argument("--load", type=float, default=plan.load, help="share of the capacity, default %(default)g")
    parser.add_argument("--window", type=float, default=plan.window, help=f"seconds; default: 1/{WINDOWS} of the time")
    parser.add_argument("--ramp", type=float, default=plan.ramp, help="seconds of a step of the ramp to capacity")
    parser.add_argument("--timeout", type=float, default=plan.timeout, help="seconds a request may take")
    parser.add_argument("--seed", type=int, default=plan.seed, help="of arrivals, kinds and noise")
    parser.add_argument("--max-rss-mb", type=float, default=bounds.rss_mb, help="growth, default %(default)g")
    parser.add_argument("--max-p50", type=float, default=bounds.p50, help="ratio, default %(default)g")
    parser.add_argument("--max-p99", type=float, default=bounds.p99, help="ratio, default %(default)g")
    parser.add_argument("--output", type=Path, default=Path("out/soak"), help="folder for soak.json, .md and .png")


def main(options: argparse.Namespace, console: Console) -> int:
    """Soak a server, print what drifted and write it down; 1 where something grew beyond its bound."""
    plan = SoakPlan(**{name: getattr(options, name) for name in SoakPlan.__dataclass_fields__})
    bounds = Bounds(rss_mb=options.max_rss_mb, p50=options.max_p50, p99=options.max_p99)
    parse_mix(plan.mix)  # before a server is started for it
    environment = describe_environment()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with contextlib.ExitStack() as stack:
        arguments = ["--engine", options.engine]
        server = stack.enter_context(ServerProcess(options.repository, options.output / "server.log", arguments))
        bar = stack.enter_context(
            Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, refresh_per_second=2)
        )
        task = bar.add_task("capacity", total=plan.windows)
        capacity = find_capacity(
            plan, server.address, lambda rate: bar.update(task, description=f"capacity: {rate:g}/s")
        )
        rate = plan.load * capacity
        bar.update(task, description=f"{rate:.1f} requests/s")
        windows = []
        for index in range(plan.windows):
            windows.append(run_window(plan, server, rate, index))
            bar.advance(task)
    drift = drift_of(windows)
    result = SoakResult(
        mix=plan.mix,
        load=plan.load,
        window_seconds=plan.window_seconds,
        engine=options.engine,
        capacity=capacity,
        rate=rate,
        windows=tuple(windows),
        drift=drift,
        bounds=bounds,
        broken=tuple(drift.beyond(bounds)),
        environment=environment,
    )
    write(result, options.output)
    console.print(result.summary())
    for broken in result.broken:
        console.print(f"grew beyond its bound: {broken}")
    console.print(f"wrote soak.json, soak.md and soak.png into {options.output}")
    return 1 if result.broken else 0


def write(result: SoakResult, folder: Path) -> None:
    """Write the document, the report and the picture."""
    from .pictures import draw_soak  # after the measurement: matplotlib takes a second to import

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "soak.json").write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    (folder / "soak.md").write_text(result.markdown())
    draw_soak(folder / "soak.png", result.windows, result.summary(), result.environment.line())
