"""`python -m bench faults`: thousands of requests with every fault to a server of its own, each ending judged.

Random cancels, deadlines, malformed messages, inputs that diverge, killed clients, slow readers, versions that come
and go, damaged bundles, and a SIGTERM in the midst. It promises: no request lost, none hung, no wrong picture (each is
compared with `models.run` on the checkpoint it was exported from), only the codes that a fault allows, nothing held
when the callers are gone, no growth, a clean stop. Exit code 1 where one is broken; the report names the request.
The same seed draws the same requests; how they meet in time differs from run to run.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.environment import describe_environment
from bench.footprint import WITHOUT_PROC
from bench.server_process import ServerProcess
from models.bundle import Bundle, BundleError, load_bundle
from models.machine import ROOT

from .campaign import PHASES, Campaign, PhaseResult, Server
from .contents import draw_contents
from .keeper import Keeper
from .kinds import Drawer
from .oracle import Oracle
from .report import Bounds, Report, all_broken

REQUESTS = 3000
CONTENTS = 150
MOST_REQUESTS = 200_000
DRAIN_SECONDS = 30.0
STOP_SECONDS = 45.0
"""The server's drain, and what ends after it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench faults`."""
    parser.add_argument("--repository", type=Path, required=True, help="the models to serve, from a copy")
    parser.add_argument("--zoo", type=Path, default=ROOT / "models" / "zoo", help="checkpoints they were exported from")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="besides warm-up and stop, default %(default)s")
    parser.add_argument("--contents", type=int, default=CONTENTS, help="distinct ones, default %(default)s")
    parser.add_argument("--open", type=int, default=24, help="requests under way at a time, default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn, default %(default)s")
    parser.add_argument("--engine", default="onnxruntime", help="of the server, default %(default)s")
    parser.add_argument("--output", type=Path, default=Path("out/faults"), help="folder for faults.json and faults.md")


def main(options: argparse.Namespace, console: Console) -> int:
    """Run the campaign, print what came of it and write it down; 1 where a promise was broken."""
    if not 1 <= options.requests <= MOST_REQUESTS:
        raise ValueError(f"requests: must be within 1..{MOST_REQUESTS}, got {options.requests}")
    for name in ("contents", "open"):
        if getattr(options, name) < 4:
            raise ValueError(f"{name}: must be at least 4, got {getattr(options, name)}")
    bundles = newest_bundles(options.repository)
    oracle = Oracle.load(bundles, options.zoo)
    contents = draw_contents(oracle.cards, options.contents, options.seed)
    drawer = Drawer(contents, oracle.cards, random.Random(options.seed))
    options.output.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, refresh_per_second=2) as bar:
        report = run(options, bundles, oracle, drawer, bar)
    path = options.output / "faults.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report.document()), indent=1) + b"\n")
    (options.output / "faults.md").write_text(report.markdown())
    for broken in report.broken:
        console.print(f"{broken.promise}: {broken.what}")
    console.print(report.summary())
    console.print(f"wrote {path} and {options.output / 'faults.md'}")
    return 1 if report.broken else 0


def newest_bundles(repository: Path) -> list[Bundle]:
    """The newest version of each model.

    Raises:
        ValueError: no bundle, or one that cannot be read.
    """
    newest: dict[str, int] = {}
    for manifest in repository.glob("*/*/manifest.json"):
        name, version = manifest.parent.parent.name, manifest.parent.name
        if version.isdecimal():
            newest[name] = max(newest.get(name, 0), int(version))
    if not newest:
        raise ValueError(f"repository: {repository} holds no bundle (NAME/VERSION/manifest.json)")
    try:
        return [load_bundle(repository / name / str(version)) for name, version in sorted(newest.items())]
    except BundleError as error:
        raise ValueError(f"repository: {error}") from error


def run(options: argparse.Namespace, bundles: list[Bundle], oracle: Oracle, drawer: Drawer, bar: Progress) -> Report:
    """The whole campaign on a server of its own.

    Raises:
        ServerFailed: it did not start.
    """
    environment = describe_environment()
    started = time.monotonic()
    computing = bar.add_task("offline results", total=len(drawer.all_contents))
    oracle.prepare(drawer.all_contents, lambda: bar.advance(computing))
    oracle_seconds = time.monotonic() - started
    arguments = ["--engine", options.engine, "--drain-seconds", str(DRAIN_SECONDS)]
    with _copy(bundles) as repository:
        process = ServerProcess(repository, options.output / "server.log", arguments, stop_timeout=STOP_SECONDS)
        with process:
            server = Server(process.address, process.metrics_address, process.pid)
            campaign = Campaign(server, drawer, oracle, open_requests=options.open)
            phases = asyncio.run(_phases(campaign, process, Keeper(repository, drawer), options.requests, bar))
    start, end = phases[0].holds, phases[-2].holds  # the last phase is the stop, after which there is no process
    broken = all_broken(phases)
    if start is not None and end is not None:
        broken += Bounds().grown(start, end)
    else:
        bar.console.print(WITHOUT_PROC)
    return Report(
        requests=options.requests,
        seed=options.seed,
        engine=options.engine,
        oracle_seconds=oracle_seconds,
        seconds=time.monotonic() - started,
        phases=tuple(phases),
        start=start,
        end=end,
        broken=tuple(broken),
        environment=environment,
    )


@contextmanager
def _copy(bundles: list[Bundle]) -> Iterator[Path]:
    """A repository of copies, to be changed at will."""
    with tempfile.TemporaryDirectory(prefix="fewstep-faults-") as folder:
        for bundle in bundles:
            shutil.copytree(bundle.directory, Path(folder) / bundle.card.name / str(bundle.manifest.version))
        yield Path(folder)


async def _phases(
    campaign: Campaign, process: ServerProcess, keeper: Keeper, requests: int, bar: Progress
) -> list[PhaseResult]:
    tasks = {}

    def progress(name: str, done: int, total: int) -> None:
        if name not in tasks:
            tasks[name] = bar.add_task(name, total=total)
        bar.update(tasks[name], completed=done, total=total)

    phases = [await campaign.warm_up(keeper, progress)]
    for phase in PHASES:
        count = max(1, round(phase.share * requests))
        phases += [await campaign.phase(phase, count, keeper, progress)]
    return [*phases, await campaign.stop(lambda: asyncio.to_thread(process.stop), progress)]
