"""`python -m models.train digits-ddpm|digits-vdrme|all --output DIRECTORY`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from . import ddpm

TRAINERS = {ddpm.NAME: ddpm.train_digits_ddpm}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the named checkpoints; `all` trains them in the order in which they build on each other."""
    parser = argparse.ArgumentParser(prog="python -m models.train", description="Train the shipped checkpoints.")
    parser.add_argument("model", choices=[*TRAINERS, "all"])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "zoo", help="directory to write to")
    options = parser.parse_args(arguments)
    names = list(TRAINERS) if options.model == "all" else [options.model]
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[losses]}"))
    for name in names:
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(name, losses="")

            def report(done: int, total: int, losses: str) -> None:
                progress.update(task, completed=done, total=total, losses=losses)

            directory = TRAINERS[name](options.output, report)
        console.print(f"wrote {directory}")


if __name__ == "__main__":
    main()
