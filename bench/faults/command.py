"""`python -m bench faults`: thousands of requests with every fault to a server of its own, each ending judged.

Random cancels, deadlines, malformed messages, inputs that diverge, killed clients, slow readers, versions that come
and go, damaged bundles, and a SIGTERM in the midst. It promises: no request lost, none hung, no wrong picture (each is
compared with `models.run` on the checkpoint it was exported from), only the codes that a fault allows, nothing held
when the callers are gone, no growth, a clean stop. Exit code 1 where one is broken; the report names the request.
The same seed draws the same requests; how they meet in time differs from run to run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from models.machine import ROOT

MOST_REQUESTS = 200_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench faults`."""
    parser.add_argument("--repository", type=Path, required=True, help="the models to serve, from a copy")
    parser.add_argument("--zoo", type=Path, default=ROOT / "models" / "zoo", help="checkpoints they were exported from")
    parser.add_argument("--requests", type=int, default=3000, help="besides warm-up and stop, default %(default)s")
    parser.add_argument("--contents", type=int, default=150, help="distinct ones, default %(default)s")
    parser.add_argument("--open", type=int, default=24, help="requests under way at a time, default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn, default %(default)s")
    parser.add_argument("--engine", default="onnxruntime", help="of the server, default %(default)s")
    parser.add_argument("--output", type=Path, default=Path("out/faults"), help="folder for faults.json and faults.md")


def main(options: argparse.Namespace, console: Console) -> int:
    """Run the campaign, print what came of it and write it down; 1 where a promise was broken."""
    from .session import Plan, run  # torch, which the other measurements do without

    if not 1 <= options.requests <= MOST_REQUESTS:
        raise ValueError(f"requests: must be within 1..{MOST_REQUESTS}, got {options.requests}")
    for name in ("contents", "open"):
        if getattr(options, name) < 4:
            raise ValueError(f"{name}: must be at least 4, got {getattr(options, name)}")
    plan = Plan(**{name: getattr(options, name) for name in Plan.__dataclass_fields__})
    plan.output.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, refresh_per_second=2) as bar:
        report = run(plan, bar)
    path = plan.output / "faults.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report.document()), indent=1) + b"\n")
    (plan.output / "faults.md").write_text(report.markdown())
    for broken in report.broken:
        console.print(f"{broken.promise}: {broken.what}")
    console.print(report.summary())
    console.print(f"wrote {path} and {plan.output / 'faults.md'}")
    return 1 if report.broken else 0
