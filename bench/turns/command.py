"""`python -m bench turns`: this version beside another, or other options, under the same load in turns.

Machines are noisy, and more so from one hour to the next than within a minute: so both servers run all the time, take
turns of a few seconds each, and every ratio is of two turns side by side. Against the same version with the same
options (the default) it tells how much of a difference is noise.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from models.machine import ROOT, commit

from ..environment import describe_environment
from ..load import DEFAULT_MIX, DEFAULT_RATE, Clients, LoadPlan, run_load
from ..mix import parse_mix
from ..schedule import Poisson
from ..server_process import ServerProcess
from ..targets import NativeTarget
from .result import Side, Turn, TurnsResult

THIS, OTHER = "this", "other"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench turns`."""
    plan = LoadPlan()
    parser.add_argument("--repository", type=Path, required=True, help="the models that both serve")
    parser.add_argument(
        "--other", type=Path, default=ROOT, metavar="CHECKOUT", help="of the other version; default: this one"
    )
    parser.add_argument("--options", default="", help="of this server, in one argument: '--threads 1'")
    parser.add_argument("--other-options", help="of the other server; default: the same")
    parser.add_argument("--mix", default=DEFAULT_MIX, help="kinds and weights, default %(default)s")
    parser.add_argument("--rates", type=_numbers, metavar="RATE,RATE", help=f"open loops, default {DEFAULT_RATE:g}")
    parser.add_argument("--clients", type=_numbers, metavar="N,N", help="closed loops of so many clients, too")
    parser.add_argument("--rounds", type=int, default=4, help="default %(default)d")
    parser.add_argument("--duration", type=float, default=6.0, help="seconds of a turn, default %(default)g")
    parser.add_argument("--warmup", type=float, default=2.0, help="seconds before each, default %(default)g")
    parser.add_argument("--timeout", type=float, default=plan.timeout, help="seconds a request may take")
    parser.add_argument("--seed", type=int, default=plan.seed, help="of arrivals, kinds and noise")
    parser.add_argument("--output", type=Path, default=Path("out/turns"), help="folder for turns.json and turns.md")


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def main(options: argparse.Namespace, console: Console) -> int:
    """Measure in turns, print the ratios and write everything down."""
    if options.rounds < 1:
        raise ValueError(f"rounds: must be at least 1, got {options.rounds}")
    loads = _loads(options)
    parse_mix(options.mix)  # before a server is started for it
    if not (options.other / "server" / "__main__.py").is_file():
        raise ValueError(f"other: {options.other} is no checkout of this project")
    own = tuple(shlex.split(options.options))
    others = own if options.other_options is None else tuple(shlex.split(options.other_options))
    sides = Side(THIS, commit(ROOT), own), Side(OTHER, commit(options.other), others)
    environment = describe_environment()
    turns: list[Turn] = []
    with contextlib.ExitStack() as stack:
        servers = {
            side.name: stack.enter_context(
                ServerProcess(options.repository, options.output / f"{side.name}.log", side.options, checkout=checkout)
            )
            for side, checkout in zip(sides, (ROOT, options.other), strict=True)
        }
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        bar = stack.enter_context(
            Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, refresh_per_second=2)
        )
        task = bar.add_task("turns", total=2 * options.rounds * len(loads))
        for number in range(options.rounds):
            for name, plan in loads.items():
                for side in sides if number % 2 == 0 else sides[::-1]:
                    bar.update(task, description=f"{name}, {side.name}")
                    held = [server for other, server in servers.items() if other != side.name]
                    with _holding(held[0]):
                        turns.append(_turn(name, number, side, plan, servers[side.name]))
                    bar.advance(task)
    result = TurnsResult(
        sides, options.mix, options.rounds, options.duration, options.timeout, tuple(turns), environment
    )
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "turns.json").write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    (options.output / "turns.md").write_text(result.markdown())
    console.print(_table(result))
    console.print(f"wrote turns.json and turns.md into {options.output}")
    return 0


def _loads(options: argparse.Namespace) -> dict[str, LoadPlan]:
    """What is sent, by name."""
    plan = LoadPlan(
        options.mix, duration=options.duration, warmup=options.warmup, seed=options.seed, timeout=options.timeout
    )
    rates = options.rates if options.rates or options.clients else [DEFAULT_RATE]
    loads = {f"{rate:g} requests/s": replace(plan, arrivals=Poisson(rate)) for rate in rates or ()}
    for clients in options.clients or ():
        name = f"{clients:g} client{'s' if clients != 1 else ''}"
        loads[name] = replace(plan, arrivals=Clients(int(clients)))
    return loads


def _turn(name: str, number: int, side: Side, plan: LoadPlan, server: ServerProcess) -> Turn:
    """Both sides get the same requests in a round, and others in the next."""
    result, _ = run_load(replace(plan, seed=plan.seed + number), NativeTarget(server.address))
    latency = result.total.latency
    return Turn(
        *(name, number, side.name, result.offered, result.achieved),
        *(latency["p50"], latency["p99"], dict(result.errors)),
    )


@contextlib.contextmanager
def _holding(server: ServerProcess) -> Iterator[None]:
    """Keep a server from running, so that the other one has the machine."""
    family = server.family()
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in family:
            os.kill(pid, signal.SIGCONT)


def _table(result: TurnsResult) -> Table:
    header, *lines = result.table()
    table = Table(*header, box=SIMPLE_HEAD)
    for line in lines:
        table.add_row(*line)
    return table
