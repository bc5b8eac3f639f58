"""`python -m models.train NAME|all --output DIRECTORY`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from . import checkerboard, classifier, ddpm, gdim, hat, latent_prior, near, vdrme
from .ddpm import Report

ZOO = Path(__file__).parent.parent / "zoo"
TRAINERS: dict[str, Callable[[Path, Report], Path]] = {
    ddpm.NAME: ddpm.train_digits_ddpm,
    vdrme.NAME: vdrme.train_digits_vdrme,
    near.NAME: near.train_digits_0_4,
    gdim.NAME: gdim.train_digits_gdim,
    gdim.START_NAME: gdim.train_digits_gdim_start,
    hat.NAME: hat.train_digits_hat,
    checkerboard.NAME: checkerboard.train_checkerboard,
    latent_prior.NAME: latent_prior.train_digits_latent,
    latent_prior.NAME_6: latent_prior.train_digits_latent_6,
    classifier.NAME: classifier.train_digits_classifier,
}
"""By checkpoint name, in the order in which they build on each other."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the named checkpoint, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m models.train", description="Train the shipped checkpoints.")
    parser.add_argument("model", choices=[*TRAINERS, "all"])
    parser.add_argument("--output", type=Path, default=ZOO, help="directory to write to (default: models/zoo)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; the shipped weights took one")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    console = Console()
    for name in list(TRAINERS) if options.model == "all" else [options.model]:
        with ProgressLine(name, console) as report:
            directory = TRAINERS[name](options.output, report)
        console.print(f"wrote {directory}")


class ProgressLine:
    """A bar with the losses behind it; inside the `with` block it is the `Report` to call."""

    def __init__(self, name: str, console: Console) -> None:
        name_column, losses_column = TextColumn("{task.description}"), TextColumn("{task.fields[losses]}")
        columns = name_column, BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(), losses_column
        self._progress = Progress(*columns, console=console)
        self._task = self._progress.add_task(name, losses="")

    def __enter__(self) -> Report:
        self._progress.start()
        return self._report

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _report(self, done: int, total: int, losses: str) -> None:
        self._progress.update(self._task, completed=done, total=total, losses=losses)


if __name__ == "__main__":
    main()
