"""`python -m bench compare`: fewstep beside the servers that people would otherwise use, in one run, interleaved."""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from bench.environment import describe_environment
from bench.peers.engine import load_engines
from bench.peers.registry import FEWSTEP, PEERS, Peer, find_peer
from models.machine import ROOT

from .agreement import Disagreement, check_agreement
from .plan import FULL, QUICK, Plan
from .report import markdown
from .result import Comparison, Measurement, Setup
from .scenarios import BARE, DIFFUSERS, LARGE, NATIVE, SCORER, SMALL, Bench, Scenario, all_scenarios
from .servers import Running, running

LOOP_TITLES = {BARE: "bare loop, no server", DIFFUSERS: "diffusers' loop, no server", NATIVE: "fewstep, fewstep.v1"}
ENGINE_THREADS = 1
"""What the server takes on two cores, and so everybody."""
EXPORT_TIMEOUT = 900.0


class CompareError(Exception):
    """A comparison that cannot be made; the message says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench compare`."""
    known = [*all_scenarios()]
    parser.add_argument("--scenarios", type=_names, default=known, help=f"of {', '.join(known)}; default: all")
    peers = f"of {', '.join(PEERS)}; default: all. NAME@MS: with batches that wait so many milliseconds to be filled"
    parser.add_argument("--peers", type=_names, default=[*PEERS], help=peers)
    parser.add_argument(
        "--repository", type=Path, help="bundles of the models; default: exported into OUTPUT/repository"
    )
    parser.add_argument("--output", type=Path, default=Path("out/compare"), help="default %(default)s")
    parser.add_argument("--quick", action="store_true", help="one short round of each, to see that it works")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def main(options: argparse.Namespace, console: Console) -> int:
    """Compare, print the goals and write everything down; 1 where the servers do not agree or cannot be started."""
    scenarios = _chosen_scenarios(options.scenarios)
    peers = _chosen_peers(options.peers)
    plan = QUICK if options.quick else FULL
    try:
        comparison = compare(*(plan, scenarios, peers, options.repository, options.output), console=console)
    except (CompareError, Disagreement) as error:
        console.print(f"python -m bench compare: {error}")
        return 1
    from .pictures import draw  # after the measurement: matplotlib takes a second to import

    draw(options.output / "compare.png", comparison)
    console.print(goals(comparison))
    console.print(f"wrote compare.json, compare.md and compare.png into {options.output}")
    return 0


def _chosen_scenarios(names: Sequence[str]) -> list[Scenario]:
    known = all_scenarios()
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"scenarios: must be of {', '.join(known)}, got {', '.join(unknown) or 'none'}")
    return [scenario for name, scenario in known.items() if name in names]


def _chosen_peers(names: Sequence[str]) -> list[Peer]:
    """fewstep, whose numbers all others stand beside, and the others in the order of the names."""
    if not names:
        raise ValueError(f"peers: must be of {', '.join(PEERS)}, got none")
    try:
        found = {name: find_peer(name) for name in names}
    except ValueError as error:
        raise ValueError(f"peers: {error}") from None
    return [PEERS[FEWSTEP], *(peer for name, peer in found.items() if name != FEWSTEP)]


def compare(
    plan: Plan,
    scenarios: Sequence[Scenario],
    peers: Sequence[Peer],
    repository: Path | None,
    output: Path,
    *,
    console: Console,
) -> Comparison:
    """Start the servers, see that they agree, and measure them in turns; what there is is written after each scenario.

    Raises:
        CompareError: fewstep itself does not start, or the models cannot be exported.
        Disagreement: a server computes something else.
    """
    environment = describe_environment()
    with_large = any(scenario.name == "large" for scenario in scenarios)
    with contextlib.ExitStack() as stack:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        bar = stack.enter_context(
            Progress(*columns, TimeRemainingColumn(), console=console, refresh_per_second=2, transient=True)
        )
        task = bar.add_task("models", total=None)
        if repository is None:
            repository = prepare_repository(output, with_large=with_large)
        engines = load_engines(repository, ENGINE_THREADS)
        missing = [name for name in (SMALL, SCORER, *([LARGE] if with_large else [])) if name not in engines]
        if missing:
            raise CompareError(f"{repository}: no model {', '.join(missing)}, which the scenarios ask")
        names = [name for name in (SMALL, SCORER, f"{SCORER}.score", LARGE) if name.removesuffix(".score") in engines]
        servers, left_out = stack.enter_context(
            running(
                *(peers, repository, output / "logs", names, ENGINE_THREADS),
                report=lambda title: bar.update(task, description=f"starting {title}"),
                warn=console.print,
            )
        )
        for name, reason in left_out.items():
            console.print(f"{find_peer(name).title} is left out: {reason.partition(chr(10))[0]}")
        if FEWSTEP not in {server.name for server in servers}:
            raise CompareError(f"fewstep did not start: {left_out.get(FEWSTEP)}")
        bar.update(task, description="all compute the same")
        check_agreement(servers, engines)
        bench = Bench(plan, servers, engines, repository, ENGINE_THREADS)
        bar.update(task, total=sum(scenario.rounds(plan) for scenario in scenarios), completed=0)
        measurements: list[Measurement] = []
        for count, scenario in enumerate(scenarios, start=1):
            bar.update(task, description=f"{scenario.name}: settings")
            scenario.prepare(bench)
            loops = scenario.loops(bench)
            for turn in range(scenario.rounds(plan)):
                for name, measure in loops.items():
                    bar.update(task, description=f"{scenario.name}: {LOOP_TITLES[name]}")
                    measurements.append(Measurement(scenario.name, name, turn, measure()))
                for server in in_turn(servers, turn):
                    bar.update(task, description=f"{scenario.name}: {server.peer.title}")
                    for name, numbers in scenario.measure(bench, server, turn).items():
                        measurements.append(Measurement(scenario.name, name, turn, dict(numbers)))
                bar.advance(task)
            setup = _setup(plan, scenarios[:count], servers, left_out)
            comparison = Comparison(setup, environment, tuple(measurements))
            write_numbers(comparison, output)  # now: half an hour of measurements is too much to lose at the end
        return comparison


def in_turn(servers: Sequence[Running], turn: int) -> list[Running]:
    """The servers of a round, each round beginning with another one: none is always the one after the loops."""
    start = turn % len(servers)
    return [*servers[start:], *servers[:start]]


def prepare_repository(output: Path, *, with_large: bool) -> Path:
    """Export the models of the scenarios, or leave them as they are where they are up to date.

    Raises:
        CompareError: the exporter failed; ends with what it said.
    """
    checkpoints = [f"models/zoo/{name}" for name in (SMALL, SCORER)]
    if with_large:
        directory = output / "checkpoints"
        if not (directory / LARGE / "checkpoint.json").is_file():
            _run("models.presets", LARGE, "--output", str(directory))
        checkpoints.append(str(directory / LARGE))
    repository = output / "repository"
    _run("export", *checkpoints, "--repository", str(repository), "--jobs", str(min(2, os.cpu_count() or 1)))
    return repository


def _run(module: str, *arguments: str) -> None:
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=EXPORT_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise CompareError(f"python -m {module} did not end within {EXPORT_TIMEOUT:g} s") from None
    if done.returncode != 0:
        raise CompareError(f"python -m {module} ended with code {done.returncode}:\n{done.stderr.strip()[-2000:]}")


def _setup(plan: Plan, scenarios: Sequence[Scenario], servers: Sequence[Running], left_out: Mapping[str, str]) -> Setup:
    titles = {server.name: server.peer.title for server in servers}
    return Setup(
        titles={FEWSTEP: titles.pop(FEWSTEP), NATIVE: LOOP_TITLES[NATIVE], **titles, **LOOP_TITLES},
        versions={server.name: server.version for server in servers},
        left_out=left_out,
        scenarios={scenario.name: scenario.title for scenario in scenarios},
        settings={scenario.name: scenario.settings for scenario in scenarios},
        plan=asdict(plan),
        threads=ENGINE_THREADS,
    )


def write_numbers(comparison: Comparison, output: Path) -> None:
    """Write the document and the report."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "compare.json").write_bytes(
        msgspec.json.format(msgspec.json.encode(comparison.document()), indent=1) + b"\n"
    )
    (output / "compare.md").write_text(markdown(comparison))


def goals(comparison: Comparison) -> Table:
    """The ratios that have goals."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("ratio", no_wrap=True)
    for heading in ("value", "goal", "met"):
        table.add_column(heading, justify="right", no_wrap=True)
    for ratio in comparison.ratios():
        if ratio.goal is not None:
            table.add_row(ratio.name, f"{ratio.value:.3g}", str(ratio.goal), "yes" if ratio.met else "no")
    return table
