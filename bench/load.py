"""`python -m bench load`: open-loop Poisson load on a running server, or on one of its own.

Arrivals, kinds and seeds are drawn before the first request, so a run can be repeated. Latencies run from the
scheduled arrivals (`bench.sender`). Requests of the warm-up are sent and not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from protos import fewstep_pb2 as pb
from server.client import FewstepClient, ModelDescription
from server.client.messages import sample_request, score_request

from .environment import describe_environment
from .metrics_page import read_metrics
from .mix import Kind, parse_mix, resolve
from .percentiles import percentiles
from .schedule import Schedule, poisson
from .sender import Outcome, send
from .server_process import ServerProcess

DEFAULT_MIX = "ddim:1=4,ddim:8=2,iddim:4:m=0.6=2,vdrme:4:model=digits-vdrme=1,score:model=digits-vdrme=2"
MOST_REQUESTS = 500_000
LONGEST = 3600.0
"""Seconds of warm-up and load together."""


class LoadError(ValueError):
    """A load that cannot be sent; the message names the option."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What to send. rate: requests a second. duration, warmup, timeout: seconds. max_open: requests unanswered."""

    mix: str = DEFAULT_MIX
    rate: float = 50.0
    duration: float = 20.0
    warmup: float = 3.0
    seed: int = 0
    timeout: float = 10.0
    max_open: int = 4096

    def __post_init__(self) -> None:
        for name in ("rate", "duration", "timeout"):
            if not 0 < getattr(self, name) < math.inf:
                raise LoadError(f"{name}: must be positive and finite, got {getattr(self, name)}")
        if not 0 <= self.warmup < math.inf:
            raise LoadError(f"warmup: must not be negative, got {self.warmup}")
        if self.max_open < 1:
            raise LoadError(f"max_open: must be at least 1, got {self.max_open}")
        if self.warmup + self.duration > LONGEST:
            raise LoadError(f"duration: with the warm-up at most {LONGEST:g} s, got {self.warmup + self.duration:g}")
        if self.rate * (self.warmup + self.duration) > MOST_REQUESTS:
            raise LoadError(f"rate: at most {MOST_REQUESTS} requests in a run, got {self.rate:g} a second")


@dataclass(frozen=True, slots=True)
class KindResult:
    """What was measured for one kind of request; latencies in seconds, over the answered requests only.

    errors: by name of the gRPC status. batch_rows: mean over requests of the rows in the batches that they rode in.
    """

    name: str
    sent: int
    ok: int
    errors: dict[str, int]
    latency: dict[str, float]
    queue_seconds: float
    compute_seconds: float
    batch_rows: float


@dataclass(frozen=True, slots=True)
class LoadResult:
    """A whole run. Rates are requests a second.

    server: its version and engine, and the model that each kind went to.
    offered: requests scheduled in the measured window, over its length. achieved: answers within the window.
    lag: how late this process sent, in seconds; where it is not small beside the latencies, the sender was the
    bottleneck. batches: by network, from the server's own counters: batches run, and mean rows in them.
    """

    plan: LoadPlan
    server: dict[str, Any]
    offered: float
    achieved: float
    errors: dict[str, int]
    lag: dict[str, float]
    kinds: tuple[KindResult, ...]
    batches: dict[str, dict[str, float]]


def make_requests(
    kinds: Sequence[Kind], schedule: Schedule, models: dict[str, ModelDescription]
) -> list[pb.SampleRequest | pb.ScoreRequest]:
    """The messages of a schedule. Images to score are uniform noise: their content costs the server nothing."""
    requests: list[pb.SampleRequest | pb.ScoreRequest] = []
    for index, seed in zip(schedule.kind.tolist(), schedule.seed.tolist(), strict=True):
        kind = kinds[index]
        options: dict[str, Any] = dict(kind.options)
        if kind.sampler is not None:
            requests.append(sample_request(kind.model, {"sampler": kind.sampler, "seed": seed, **options}))  # type: ignore[typeddict-item]
            continue
        model = models[kind.model]
        noise = np.random.Generator(np.random.PCG64(seed))
        images = noise.uniform(model.low, model.high, size=(options.pop("images", 1), *model.image_shape))
        requests.append(score_request(kind.model, images, seed=seed, **options))
    return requests


def summarise(
    plan: LoadPlan,
    kinds: Sequence[Kind],
    outcomes: Sequence[Outcome],
    server: dict[str, Any],
    batches: dict[str, dict[str, float]],
) -> LoadResult:
    """Put the outcomes of a run together; those scheduled in the warm-up are left out."""
    end = plan.warmup + plan.duration
    measured = [outcome for outcome in outcomes if outcome.scheduled >= plan.warmup]
    answered = sum(outcome.ok and plan.warmup <= outcome.scheduled + outcome.latency < end for outcome in outcomes)
    return LoadResult(
        plan=plan,
        server=server,
        offered=len(measured) / plan.duration,
        achieved=answered / plan.duration,
        errors=_errors(measured),
        lag=percentiles([outcome.lag for outcome in measured]),
        kinds=tuple(
            _kind_result(kind, [outcome for outcome in measured if outcome.kind == index])
            for index, kind in enumerate(kinds)
        ),
        batches=batches,
    )


def _errors(outcomes: Sequence[Outcome]) -> dict[str, int]:
    return dict(sorted(Counter(outcome.code for outcome in outcomes if not outcome.ok).items()))


def _kind_result(kind: Kind, outcomes: Sequence[Outcome]) -> KindResult:
    answered = [outcome for outcome in outcomes if outcome.ok]

    def mean(name: str) -> float:
        return float(np.mean([getattr(outcome, name) for outcome in answered])) if answered else math.nan

    return KindResult(
        name=kind.name,
        sent=len(outcomes),
        ok=len(answered),
        errors=_errors(outcomes),
        latency=percentiles([outcome.latency for outcome in answered]),
        queue_seconds=mean("queue_seconds"),
        compute_seconds=mean("compute_seconds"),
        batch_rows=mean("mean_batch_rows"),
    )


def read_batches(metrics_address: str) -> dict[tuple[str, str], tuple[float, float]]:
    """Batches and rows run so far by (model, network), from the server's metrics page."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for sample in read_metrics(metrics_address):
        if sample.name in ("fewstep_batch_rows_count", "fewstep_batch_rows_sum"):
            key = (sample.labels["model"], sample.labels["network"])
            found.setdefault(key, {})[sample.name.removeprefix("fewstep_batch_rows_")] = sample.value
    return {key: (values["count"], values["sum"]) for key, values in found.items()}


def batches_between(
    before: dict[tuple[str, str], tuple[float, float]], after: dict[tuple[str, str], tuple[float, float]]
) -> dict[str, dict[str, float]]:
    """What ran between two readings, as `model/network` -> batches and mean rows."""
    ran = {}
    for (model, network), (count, rows) in sorted(after.items()):
        earlier_count, earlier_rows = before.get((model, network), (0.0, 0.0))
        if count > earlier_count:
            batches = count - earlier_count
            ran[f"{model}/{network}"] = {"batches": batches, "mean_rows": (rows - earlier_rows) / batches}
    return ran


def run_load(
    plan: LoadPlan,
    address: str,
    metrics_address: str | None = None,
    progress: Callable[[int, int, int], None] = lambda sent, done, total: None,
) -> tuple[LoadResult, list[Outcome]]:
    """Send a load to a running server.

    metrics_address: HOST:PORT of its metrics page; without it the result says nothing of batches.
    progress: called with requests sent, done and scheduled.

    Raises:
        MixError: the mix cannot be read, or the server has no model for a part of it.
        FewstepError: the server does not answer, or refuses to list its models.
    """
    kinds = parse_mix(plan.mix)
    with FewstepClient(address, timeout=plan.timeout) as client:
        client.wait_until_connected(plan.timeout)
        kinds = resolve(kinds, client.models(), lambda name: client.describe(name).accepted_steps)
        models = {kind.model: client.describe(kind.model) for kind in kinds}
        status = client.status()
        server = {
            "version": status.version,
            "engine": status.engine,
            "models": {kind.name: kind.model for kind in kinds},
        }
        schedule = poisson(plan.rate, plan.warmup + plan.duration, [kind.weight for kind in kinds], plan.seed)
        requests = make_requests(kinds, schedule, models)
        before = read_batches(metrics_address) if metrics_address else {}
        sending = send(
            *(address, requests, schedule),
            request_timeout=plan.timeout,
            max_open=plan.max_open,
            progress=lambda sent, done: progress(sent, done, len(schedule)),
        )
        outcomes = asyncio.run(sending)
        ran = batches_between(before, read_batches(metrics_address)) if metrics_address else {}
    return summarise(plan, kinds, outcomes, server, ran), outcomes


def show(result: LoadResult, console: Console) -> None:
    """Print a run as a table."""
    table = Table(
        title="latency from the scheduled arrival, ms",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("kind", no_wrap=True)
    for column in ("sent", "ok", "p50", "p90", "p99", "max", "queue", "compute", "rows"):
        table.add_column(column, justify="right")
    for kind in result.kinds:
        times = (*kind.latency.values(), kind.queue_seconds, kind.compute_seconds)
        table.add_row(
            *(kind.name, str(kind.sent), str(kind.ok)),
            *("-" if math.isnan(time) else f"{1e3 * time:.1f}" for time in times),
            "-" if math.isnan(kind.batch_rows) else f"{kind.batch_rows:.1f}",
        )
    console.print(table)
    console.print("means: queue and compute on the server, rows in the batches ridden in")
    console.print(f"offered {result.offered:.1f} requests/s, achieved {result.achieved:.1f}")
    console.print(f"sent late by p50 {1e3 * result.lag['p50']:.2f} ms, p99 {1e3 * result.lag['p99']:.2f} ms")
    for network, ran in result.batches.items():
        console.print(f"{network}: {ran['batches']:.0f} batches of {ran['mean_rows']:.1f} rows on average")
    console.print(f"errors: {', '.join(f'{code} {count}' for code, count in result.errors.items()) or 'none'}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench load`."""
    plan = LoadPlan()
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--address", metavar="HOST:PORT", help="of a running server")
    where.add_argument(
        "--repository", type=Path, help="start a server over this model repository, and stop it afterwards"
    )
    parser.add_argument("--metrics-address", metavar="HOST:PORT", help="of the running server, for its batch sizes")
    parser.add_argument("--engine", help="of the started server")
    parser.add_argument("--threads", type=int, help="of the started server's engine")
    parser.add_argument("--mix", default=plan.mix, help="kinds and weights, default %(default)s")
    parser.add_argument("--rate", type=float, default=plan.rate, help="requests a second, default %(default)g")
    parser.add_argument("--duration", type=float, default=plan.duration, help="seconds measured, default %(default)g")
    parser.add_argument("--warmup", type=float, default=plan.warmup, help="seconds before, default %(default)g")
    parser.add_argument("--seed", type=int, default=plan.seed, help="of arrivals, kinds and noise")
    parser.add_argument("--timeout", type=float, default=plan.timeout, help="seconds a request may take")
    parser.add_argument("--max-open", type=int, default=plan.max_open, help="bound on requests without an answer")
    parser.add_argument("--output", type=Path, default=Path("out/load"), help="folder for load.json and load.png")


def main(options: argparse.Namespace, console: Console) -> int:
    """Run a load, print it and write it down; 1 where not one request was answered."""
    plan = LoadPlan(**{name: getattr(options, name) for name in LoadPlan.__dataclass_fields__})
    parse_mix(plan.mix)  # before a server is started for it
    environment = describe_environment()
    with contextlib.ExitStack() as stack:
        address, metrics_address = options.address, options.metrics_address
        if options.repository is not None:
            flags = [
                text
                for name in ("engine", "threads")
                if (value := getattr(options, name))
                for text in (f"--{name}", str(value))
            ]
            server = stack.enter_context(ServerProcess(options.repository, options.output / "server.log", flags))
            address, metrics_address = server.address, server.metrics_address
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        bar = stack.enter_context(Progress(*columns, console=console, refresh_per_second=2))
        task = bar.add_task(f"{plan.rate:g} requests/s")
        result, outcomes = run_load(
            *(plan, address, metrics_address), lambda sent, done, total: bar.update(task, completed=done, total=total)
        )
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "load.json"
    document = {**asdict(result), "environment": environment}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")
    from .pictures import draw_load  # after the measurement: matplotlib takes a second to import

    draw_load(options.output / "load.png", plan, [kind.name for kind in result.kinds], outcomes, environment.line())
    show(result, console)
    console.print(f"wrote {path} and {options.output / 'load.png'}")
    return 0 if any(kind.ok for kind in result.kinds) else 1
