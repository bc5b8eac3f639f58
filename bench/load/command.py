"""`python -m bench load`: a load on a running server, or on one of its own, in an open or a closed loop.

Arrivals, kinds and seeds are drawn before the first request, so a run can be repeated. Latencies of an open loop run
from the scheduled arrivals (`bench.sender`). Requests of the warm-up are sent and not counted.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..environment import describe_environment
from ..mix import parse_mix
from ..schedule import parse_arrivals
from ..server_process import ServerProcess
from ..targets import Target, open_target
from .plan import DEFAULT_RATE, Clients, LoadError, LoadPlan
from .run import run_load
from .terminal import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench load`."""
    plan = LoadPlan()
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--address", metavar="HOST:PORT", help="of a running server; with --protocol http a URL")
    where.add_argument(
        "--repository", type=Path, help="start a server over this model repository, and stop it afterwards"
    )
    parser.add_argument("--protocol", choices=("fewstep", "oip", "http"), default="fewstep", help="default %(default)s")
    parser.add_argument("--image-shape", metavar="CxHxW", help="of images to score, which --protocol http must be told")
    parser.add_argument("--metrics-address", metavar="HOST:PORT", help="of the running server, for its batch sizes")
    parser.add_argument("--engine", help="of the started server")
    parser.add_argument("--threads", type=int, help="of the started server's engine")
    parser.add_argument("--mix", default=plan.mix, help="kinds and weights, default %(default)s")
    parser.add_argument("--rate", type=float, default=DEFAULT_RATE, help="requests a second, default %(default)g")
    parser.add_argument("--arrivals", default="poisson", metavar="LAW", help="poisson (the default) or burst:SIZE")
    parser.add_argument("--clients", type=int, help="a closed loop of so many clients in place of a rate")
    parser.add_argument("--think", type=float, default=0.0, help="seconds that a client waits between its requests")
    parser.add_argument("--duration", type=float, default=plan.duration, help="seconds measured, default %(default)g")
    parser.add_argument("--warmup", type=float, default=plan.warmup, help="seconds before, default %(default)g")
    parser.add_argument("--seed", type=int, default=plan.seed, help="of arrivals, kinds and noise")
    parser.add_argument("--timeout", type=float, default=plan.timeout, help="seconds a request may take")
    parser.add_argument("--max-open", type=int, default=plan.max_open, help="bound on requests without an answer")
    parser.add_argument("--output", type=Path, default=Path("out/load"), help="folder for load.json and load.png")


def read_plan(options: argparse.Namespace) -> LoadPlan:
    """The load that the options ask for.

    Raises:
        ValueError: an option that is out of range or does not go with another one; names it.
    """
    parse_mix(options.mix)
    if options.clients is None and options.think:
        raise LoadError("think: is of a closed loop, --clients")
    clients = options.clients
    arrivals = parse_arrivals(options.arrivals, options.rate) if clients is None else Clients(clients, options.think)
    names = ("mix", "duration", "warmup", "seed", "timeout", "max_open")
    return LoadPlan(arrivals=arrivals, **{name: getattr(options, name) for name in names})


def read_image_shape(text: str | None) -> tuple[int, int, int] | None:
    """Read `CxHxW`.

    Raises:
        LoadError: it is no such thing.
    """
    if text is None:
        return None
    sizes = text.split("x")
    if len(sizes) != 3 or not all(size.isascii() and size.isdigit() and int(size) for size in sizes):
        raise LoadError(f"image-shape: must be CHANNELSxHEIGHTxWIDTH as in 1x8x8, got {text!r}")
    channels, height, width = map(int, sizes)
    return channels, height, width


@contextlib.contextmanager
def _server(options: argparse.Namespace):
    """The address of the server to measure, and of its metrics page; started and stopped here where it is to be."""
    if options.repository is None:
        yield options.address, options.metrics_address
        return
    names = ("engine", "threads")
    flags = [text for name in names if (value := getattr(options, name)) for text in (f"--{name}", str(value))]
    with ServerProcess(options.repository, options.output / "server.log", flags) as server:
        yield server.address, server.metrics_address


def main(options: argparse.Namespace, console: Console) -> int:
    """Run a load, print it and write it down; 1 where not one request was answered."""
    plan = read_plan(options)  # before a server is started for it
    shape = read_image_shape(options.image_shape)
    environment = describe_environment()
    with contextlib.ExitStack() as stack:
        address, metrics_address = stack.enter_context(_server(options))
        target: Target = open_target(options.protocol, address, shape)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        bar = stack.enter_context(Progress(*columns, console=console, refresh_per_second=2))
        task = bar.add_task(str(plan.arrivals))
        result, outcomes = run_load(
            *(plan, target, metrics_address), lambda sent, done: bar.update(task, completed=len(done), total=sent)
        )
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "load.json"
    document = {**result.document(), "environment": environment}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")
    from .pictures import draw_load  # after the measurement: matplotlib takes a second to import

    draw_load(options.output / "load.png", result, outcomes, environment.line())
    show(result, console)
    console.print(f"wrote {path} and {options.output / 'load.png'}")
    return 0 if result.total.ok else 1
