"""The whole chain on the shipped checkpoints, from export to pictures and scores.

Exports the checkpoints into a model repository, starts a server over it, asks it as a client would, stops it by
SIGTERM, and leaves two pictures, a JSON file and the server's log. Any step that fails ends it with a message.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from models.machine import ROOT
from server.client import FewstepClient

from .. import board
from ..environment import Environment, describe_environment
from ..server_process import ServerFailed, ServerProcess
from .ask import SAMPLES, Demo
from .errors import DemoError
from .exporting import export
from .tables import other_scores_table, sampler_table, score_table

MODELS = (
    *("digits-ddpm", "digits-vdrme", "digits-gdim", "digits-gdim-start", "digits-hat", "digits-latent"),
    board.MODEL,
)
CHECKPOINTS = tuple(Path("models/zoo") / name for name in MODELS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench demo`."""
    parser.add_argument(
        "checkpoints", nargs="*", type=Path, default=list(CHECKPOINTS), help="default: one of each method"
    )
    parser.add_argument("--output", type=Path, default=Path("out/demo"), help="folder, default %(default)s")


@contextmanager
def _steps(console: Console) -> Iterator[Callable[[str], None]]:
    """A line that says what is going on and for how long; each step that ends stays above it."""
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True
    ) as bar:
        task = bar.add_task("", total=None)
        current = ("", time.monotonic())

        def step(name: str) -> None:
            nonlocal current
            if current[0]:
                console.print(f"{time.monotonic() - current[1]:6.1f} s  {current[0]}")
            current = (name, time.monotonic())
            bar.update(task, description=name)

        yield step
        step("")


def main(options: argparse.Namespace, console: Console) -> int:
    """Run the demo; 0 where every step went well."""
    started = time.monotonic()
    environment = describe_environment()
    try:
        with _steps(console) as step:
            document, tables, written = _run(options, environment, step)
    except (DemoError, ServerFailed) as error:
        console.print(f"demo failed: {error}")
        return 1
    document["seconds"] = time.monotonic() - started
    path = options.output / "demo.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document, enc_hook=_plain), indent=1) + b"\n")
    for table in tables:
        console.print(table)
    console.print(f"wrote {', '.join(str(options.output / name) for name in written)}", soft_wrap=True)
    console.print(f"done in {document['seconds']:.0f} s")
    return 0


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"no JSON form for {type(value).__name__}")


def _run(
    options: argparse.Namespace, environment: Environment, step: Callable[[str], None]
) -> tuple[dict[str, Any], list[Table | str], list[str]]:
    for checkpoint in options.checkpoints:
        if not (ROOT / checkpoint).is_dir():
            raise DemoError(f"no checkpoint at {checkpoint}: `make zoo` trains the shipped ones")
    options.output.mkdir(parents=True, exist_ok=True)
    repository = options.output / "repository"
    step(f"export to {repository}")
    parity = export(options.checkpoints, repository)
    step("start of the server")
    with ServerProcess(repository, options.output / "server.log") as server, FewstepClient(server.address) as client:
        demo = Demo(client, step)
        status = client.status()
        lines, floor = demo.samplers()
        groups = {**demo.pictures(lines), **demo.guided(), **demo.refined()}
        plane = demo.checkerboard()
        scored = demo.scores()
        others = demo.other_scores()
        step("stop of the server")
        code = server.stop()
    if code != 0:
        raise DemoError(f"the server ended with code {code} on SIGTERM; see {server.log}")
    step("pictures")
    from ..pictures import draw_samples, draw_scores

    foot = environment.line()
    title = "Digits by method and number of network evaluations (NFE), the same seed in every row"
    what = f"FD: FD-digits of {SAMPLES} samples; the 397 test images: {floor:.1f}.   {foot}"
    draw_samples(options.output / "samples.png", groups, title, what, plane)
    tables: list[Table | str] = [parity, sampler_table(lines, floor)]
    written = ["demo.json", "samples.png"]
    document: dict[str, Any] = {
        "environment": environment,
        "server": {"version": status.version, "engine": status.engine, "start_seconds": server.start_seconds},
        "samples": {"count": SAMPLES, "floor": floor, "methods": lines},
    }
    if scored is not None and demo.scorer is not None:
        results, sets, inside, answer = scored
        threshold = answer.default.threshold
        heading = f"Energy of {demo.scorer}, scale {answer.default.scale}"
        draw_scores(options.output / "scores.png", inside, sets, threshold, answer.false_alarm_rate, heading, foot)
        written.append("scores.png")
        tables.append(score_table(demo.scorer, results, sets, threshold))
        document["scores"] = {
            "model": demo.scorer,
            "scale": answer.default.scale,
            "threshold": threshold,
            "false_alarm_rate": answer.false_alarm_rate,
            "false_alarms_on_test": None if threshold is None else float(np.mean(inside > threshold)),
            "sets": [asdict(result) for result in results],
        }
    if others:
        tables.append(other_scores_table(others))
        document["other_scores"] = {model: [asdict(result) for result in found] for model, found in others.items()}
    return document, tables, written
