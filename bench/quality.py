"""`python -m bench quality`: FD-digits of served samples, by method, ensemble weight and number of steps.

Samples come from a running server, so that what is measured is what callers get. Numbers at different counts of
samples do not compare (`models.metrics.frechet`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from server.client import FewstepClient, SampleOptions

from .environment import describe_environment
from .server_process import ServerProcess

if TYPE_CHECKING:
    from models.metrics.frechet import FrechetDigits

DIFFUSION, VDRME = "digits-ddpm", "digits-vdrme"
SAMPLES = 2000
REQUEST = 250
"""Samples a request: several full batches of the server, well under its bound on one request."""
OPEN_REQUESTS = 2
"""One runs, one waits, so that the server never idles between requests."""


@dataclass(frozen=True)
class Method:
    """A sampler with its options, at some numbers of steps; None: the model's own number."""

    name: str
    model: str
    options: SampleOptions = field(default_factory=SampleOptions)
    steps: tuple[int | None, ...] = (None,)


@dataclass(frozen=True)
class Quality:
    """FD-digits of one method at one number of steps. seconds: that drawing all samples took."""

    method: str
    model: str
    steps: int | None
    nfe: int
    count: int
    frechet: float
    seconds: float


def steps_option(steps: int | None) -> SampleOptions:
    """The option of a number of steps, left out where the model's own is meant."""
    return {} if steps is None else {"steps": steps}


def draw(
    client: FewstepClient, method: Method, steps: int | None, count: int, seed: int
) -> tuple[NDArray[np.float32], int]:
    """Draw samples in several requests, request i with seed `seed + i`.

    Returns: images `(count, channels, height, width)` float32, and the network evaluations spent on each.

    Raises:
        FewstepError: the server refused.
    """
    sizes = [min(REQUEST, count - start) for start in range(0, count, REQUEST)]

    def ask(index: int) -> tuple[NDArray[np.float32], int]:
        given: SampleOptions = {**method.options, **steps_option(steps)}
        options: SampleOptions = {**given, "count": sizes[index], "seed": seed + index}
        samples = client.sample(method.model, **options)
        return samples.images, samples.nfe

    with ThreadPoolExecutor(OPEN_REQUESTS) as pool:
        parts = list(pool.map(ask, range(len(sizes))))
    return np.concatenate([images for images, _ in parts]), parts[0][1]


def measure(
    client: FewstepClient,
    metric: FrechetDigits,
    methods: Sequence[Method],
    count: int,
    seed: int,
    progress: Callable[[str], None] = lambda done: None,
) -> list[Quality]:
    """FD-digits of each method at each of its numbers of steps; `progress` is called after each with its name."""
    found = []
    for method in methods:
        for steps in method.steps:
            started = time.monotonic()
            images, nfe = draw(client, method, steps, count, seed)
            seconds = time.monotonic() - started
            found.append(Quality(method.name, method.model, steps, nfe, count, metric.distance(images), seconds))
            progress(f"{method.name}, {steps} steps")
    return found


def diffusion_methods(weights: Sequence[float], steps: Sequence[int]) -> list[Method]:
    """iDDIM at each ensemble weight; weight 0 is DDIM."""
    return [
        Method(
            f"iDDIM m={m:g}" if m else "DDIM",
            DIFFUSION,
            {"sampler": "iddim", "m": m} if m else {"sampler": "ddim"},
            tuple(steps),
        )
        for m in weights
    ]


def _numbers(kind: type[int] | type[float]) -> Callable[[str], list[float]]:
    def parse(text: str) -> list[float]:
        return [kind(part) for part in text.split(",")]

    parse.__name__ = f"comma-separated {kind.__name__}"  # argparse puts it into its error message
    return parse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench quality`."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--address", metavar="HOST:PORT", help="of a running server")
    where.add_argument(
        "--repository", type=Path, help="start a server over this model repository, and stop it afterwards"
    )
    parser.add_argument("--count", type=int, default=SAMPLES, help="samples a number, default %(default)s")
    parser.add_argument(
        "--m", type=_numbers(float), default=[0, 0.1, 0.15, 0.2, 0.4, 0.5, 0.6, 0.8, 1], help="ensemble weights"
    )
    parser.add_argument("--steps", type=_numbers(int), default=[4, 8, 10, 20], help="of DDIM and iDDIM")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", type=Path, default=Path("out/quality"), help="folder for quality.json and quality.png"
    )


def main(options: argparse.Namespace, console: Console) -> int:
    """Measure, print a table of steps by method, and write it down."""
    from models.metrics.frechet import FrechetDigits  # torch and scikit-learn, which the other measurements do without

    from .pictures import draw_quality

    if options.count < 2:
        raise ValueError(f"count: must be at least 2, got {options.count}")
    environment = describe_environment()
    with ExitStack() as stack:
        address = options.address
        if options.repository is not None:
            address = stack.enter_context(ServerProcess(options.repository, options.output / "server.log")).address
        client = stack.enter_context(FewstepClient(address, timeout=300.0))
        names = {model.name for model in client.models()}
        methods = diffusion_methods(options.m, options.steps) if DIFFUSION in names else []
        if VDRME in names:
            methods.append(Method("VDRME", VDRME, {"sampler": "vdrme"}, client.describe(VDRME).accepted_steps))
        if not methods:
            raise ValueError(
                f"the server has neither {DIFFUSION} nor {VDRME}; it has {', '.join(sorted(names)) or 'none'}"
            )
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        bar = stack.enter_context(Progress(*columns, console=console))
        task = bar.add_task("quality", total=sum(len(method.steps) for method in methods))
        metric = FrechetDigits.load()
        found = measure(
            client,
            metric,
            methods,
            options.count,
            options.seed,
            lambda done: bar.update(task, advance=1, description=done),
        )
    options.output.mkdir(parents=True, exist_ok=True)
    document = {
        "count": options.count,
        "seed": options.seed,
        "floor": metric.floor,
        "quality": found,
        "environment": environment,
    }
    (options.output / "quality.json").write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")
    curves = {method.name: [(q.nfe, q.frechet) for q in found if q.method == method.name] for method in methods}
    title = f"FD-digits of {options.count} samples"
    draw_quality(options.output / "quality.png", curves, metric.floor, title, environment.line())
    all_steps = sorted({quality.steps for quality in found if quality.steps is not None})
    table = Table(title=f"{title} by network steps (397 test images: {metric.floor:.1f})", title_justify="left")
    table.add_column("method")
    for steps in all_steps:
        table.add_column(str(steps), justify="right")
    best = {steps: min(quality.frechet for quality in found if quality.steps == steps) for steps in all_steps}
    for method in methods:
        at = {quality.steps: quality.frechet for quality in found if quality.method == method.name}
        cells = [
            f"{at[steps]:.1f}{'*' if at[steps] == best[steps] else ''}" if steps in at else "" for steps in all_steps
        ]
        table.add_row(method.name, *cells)
    console.print(table)
    console.print(f"* best of its column; wrote {options.output / 'quality.json'} and {options.output / 'quality.png'}")
    return 0
