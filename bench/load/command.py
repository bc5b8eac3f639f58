"""`python -m bench load`: loads on a running server, or on one of its own, in an open or a closed loop.

Arrivals, kinds and seeds are drawn before the first request, so a run can be repeated; or they come from a trace.
Latencies of an open loop run from the scheduled arrivals (`bench.sender`). Requests of the warm-up are sent and not
counted. `--rates` repeats the load at several rates, `--search` finds the highest that meets the goals.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from ..environment import Environment, describe_environment
from ..mix import parse_mix
from ..sender import Outcome
from ..server_process import ServerProcess
from ..targets import Target, open_target
from .live import LiveTable
from .options import Job, add_arguments, read_job
from .plan import MOST_REQUESTS
from .report import load_report, rates_report
from .result import LoadResult
from .run import measure, schedule_of
from .search import CONFIRMATION, FEWEST_REQUESTS, Found, Probe, probe_of, search
from .terminal import line_of, show, show_probes, verdict
from .trace import write_trace

__all__ = ["add_arguments", "main"]


@contextlib.contextmanager
def _server(options: argparse.Namespace) -> Iterator[tuple[str, str | None]]:
    """The address of the server to measure, and of its metrics page; started and stopped here where it is to be."""
    if options.repository is None:
        yield options.address, options.metrics_address
        return
    names = ("engine", "threads")
    flags = [text for name in names if (value := getattr(options, name)) for text in (f"--{name}", str(value))]
    with ServerProcess(options.repository, options.output / "server.log", flags) as server:
        yield server.address, server.metrics_address


@dataclass(frozen=True)
class _Measured:
    """What was measured.

    probes: loads at several rates. found: what a search came to. shown: a load in detail, with its outcomes; of a
    search the load sent once more at the rate that was found, held against the goals in `again`.
    """

    probes: Sequence[Probe] = ()
    found: Found | None = None
    shown: tuple[LoadResult, list[Outcome]] | None = None
    again: Probe | None = None

    @property
    def answered(self) -> bool:
        """Whether there is a figure at all; of a search, whether a rate was found."""
        if self.found is not None:
            return self.found.rate is not None
        return any(result.total.ok for result in self._results())

    def _results(self) -> list[LoadResult]:
        return [probe.result for probe in self.probes] + ([self.shown[0]] if self.shown else [])


async def _send(job: Job, target: Target, metrics_address: str | None, table: LiveTable, console: Console) -> _Measured:
    """Send all the loads that the options ask for, one after the other, over one connection."""
    plan = job.plan

    async def one(rate: float | None = None, attempt: int = 0) -> tuple[LoadResult, list[Outcome]]:
        at = plan if rate is None else plan.at_rate(rate, plan.seed + attempt)
        table.start(at, [kind.name for kind in parse_mix(at.mix)], str(at.arrivals))
        return await measure(at, target, metrics_address, table.update)

    async def result_at(rate: float, attempt: int) -> LoadResult:
        return (await one(rate, attempt))[0]

    async with target:
        if job.precision is not None:
            found = await search(
                *(result_at, job.goals),
                first=plan.rate,
                lowest=FEWEST_REQUESTS / plan.duration,
                highest=MOST_REQUESTS / plan.seconds,
                precision=job.precision,
                tell=lambda probe: console.print(line_of(probe, judged=True)),
            )
            if found.rate is None:
                return _Measured(found.probes, found)
            # What is shown in detail has arrivals of its own, so that it was not chosen for being lucky.
            shown = await one(found.rate, CONFIRMATION)
            return _Measured(found.probes, found, shown, probe_of(found.rate, job.goals, shown[0]))
        probes = []
        for rate in job.rates:
            probes.append(probe_of(rate, job.goals, await result_at(rate, 0)))
            console.print(line_of(probes[-1], judged=bool(job.goals)))
        return _Measured(probes) if probes else _Measured(shown=await one())


def _write(measured: _Measured, job: Job, folder: Path, environment: Environment) -> list[Path]:
    """Write documents, reports and pictures; returns what was written."""
    from .pictures import draw_load, draw_rates  # after the measurement: matplotlib takes a second to import

    written: list[Path] = []

    def write(name: str, document: dict[str, Any], report: str) -> None:
        data = msgspec.json.format(msgspec.json.encode({**document, "environment": environment}), indent=1)
        (folder / f"{name}.json").write_bytes(data + b"\n")
        (folder / f"{name}.md").write_text(report)
        written.extend(folder / f"{name}.{end}" for end in ("json", "md", "png"))

    if measured.probes:
        document = {"goals": [goal.text for goal in job.goals], "probes": [p.document() for p in measured.probes]}
        if measured.found is not None:
            again = measured.again.missed if measured.again else None
            document |= {"found": measured.found.rate, "bounded": measured.found.bounded, "missed_again": again}
        write("rates", document, rates_report(measured.probes, measured.found, measured.again, environment))
        draw_rates(folder / "rates.png", measured.probes, job.goals, measured.found, environment.line())
    if measured.shown is not None:
        result, outcomes = measured.shown
        write("load", result.document(), load_report(result, environment))
        draw_load(folder / "load.png", result, outcomes, environment.line())
    return written


def main(options: argparse.Namespace, console: Console) -> int:
    """Send loads, print what came of them and write it down; 1 where nothing was answered, or no rate found."""
    job = read_job(options)  # before a server is started for it
    options.output.mkdir(parents=True, exist_ok=True)
    environment = describe_environment()
    with contextlib.ExitStack() as stack:
        address, metrics_address = stack.enter_context(_server(options))
        target = open_target(options.protocol, address, job.image_shape)
        table = stack.enter_context(LiveTable(console))
        measured = asyncio.run(_send(job, target, metrics_address, table, console))
    if options.save_trace is not None:
        kinds = parse_mix(job.plan.mix)
        write_trace(options.save_trace, kinds, schedule_of(job.plan, kinds))
    written = _write(measured, job, options.output, environment)
    if measured.probes:
        show_probes(measured.probes, console)
    if measured.found is not None:
        console.print(measured.found.summary())
    if measured.shown is not None:
        show(measured.shown[0], console)
    if measured.again is not None:
        console.print(f"the load above, once more at the rate that was found: {verdict(measured.again)}")
    console.print(f"wrote {', '.join(map(str, written))}")
    return 0 if measured.answered else 1
