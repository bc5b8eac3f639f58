"""One campaign on a server of its own, over a copy of a repository."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from bench.environment import describe_environment
from bench.footprint import WITHOUT_PROC
from bench.server_process import ServerProcess
from models.bundle import Bundle, BundleError, load_bundle

from .campaign import PHASES, Campaign, PhaseResult, Server
from .contents import covers, draw_contents
from .keeper import Keeper
from .kinds import Drawer
from .oracle import Oracle
from .report import Bounds, Report, all_broken

DRAIN_SECONDS = 30.0
STOP_SECONDS = 45.0
"""The server's drain, and what ends after it."""


@dataclass(frozen=True)
class Plan:
    """What to do. requests: besides those of the warm-up and the stop. contents: distinct ones. open: at a time."""

    repository: Path
    zoo: Path
    output: Path
    requests: int = 3000
    contents: int = 150
    open: int = 24
    seed: int = 0
    engine: str = "onnxruntime"


def covered_bundles(repository: Path) -> list[Bundle]:
    """The newest version of each model that the campaign knows how to ask.

    Raises:
        ValueError: there is none, or a bundle that cannot be read.
    """
    bundles = [bundle for bundle in newest_bundles(repository) if covers(bundle.card)]
    if not bundles:
        raise ValueError(f"repository: {repository} holds no model that the campaign knows how to ask")
    return bundles


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


def run(plan: Plan, bar: Progress) -> Report:
    """The whole campaign.

    Raises:
        ValueError: a repository without bundles, or with others than those of the zoo.
        ServerFailed: the server did not start, or did not stop.
    """
    bundles = covered_bundles(plan.repository)
    oracle = Oracle.load(bundles, plan.zoo)
    drawer = Drawer(draw_contents(oracle.cards, plan.contents, plan.seed), oracle.cards, random.Random(plan.seed))
    environment = describe_environment()
    started = time.monotonic()
    computing = bar.add_task("offline results", total=len(drawer.all_contents))
    oracle.prepare(drawer.all_contents, lambda: bar.advance(computing))
    oracle_seconds = time.monotonic() - started
    arguments = ["--engine", plan.engine, "--drain-seconds", str(DRAIN_SECONDS)]
    with _copy(bundles) as repository:
        process = ServerProcess(repository, plan.output / "server.log", arguments, stop_timeout=STOP_SECONDS)
        with process:
            server = Server(process.address, process.metrics_address, process.pid)
            campaign = Campaign(server, drawer, oracle, open_requests=plan.open)
            phases = asyncio.run(_phases(campaign, process, Keeper(repository, drawer), plan.requests, bar))
    start, end = phases[0].holds, phases[-2].holds  # the last phase is the stop, after which there is no process
    broken = all_broken(phases)
    if start is not None and end is not None:
        broken += Bounds().grown(start, end)
    else:
        bar.console.print(WITHOUT_PROC)
    return Report(
        requests=plan.requests,
        seed=plan.seed,
        engine=plan.engine,
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
