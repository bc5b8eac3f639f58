"""`python -m models.presets` lists the presets; with a name and `--output DIRECTORY` it writes a checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .catalogue import PRESETS
from .preset import NOT_STATED, parameter_counts, write


def main(arguments: Sequence[str] | None = None) -> None:
    """List, or write the named preset."""
    parser = argparse.ArgumentParser(prog="python -m models.presets", description="Models at the papers' own sizes.")
    parser.add_argument("name", nargs="?", choices=[*PRESETS], metavar="NAME", help="the preset to write")
    parser.add_argument("--output", type=Path, help="directory to write DIRECTORY/NAME to")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    options = parser.parse_args(arguments)
    console = Console()
    if options.name is None:
        console.print(table())
    elif options.output is None:
        parser.error("--output is needed to write a preset")
    else:
        console.print(f"wrote {write(PRESETS[options.name], options.output, options.seed)}", highlight=False)


def table() -> Table:
    """Every part of every preset with its parameters beside the paper's number."""
    listing = Table(box=None, pad_edge=False)
    for heading in ("preset", "paper", "image", "part"):
        listing.add_column(heading, no_wrap=heading == "preset")
    listing.add_column("parameters", justify="right", no_wrap=True)
    listing.add_column("paper's number")
    for preset in PRESETS.values():
        first = (preset.name, preset.paper, "x".join(map(str, preset.image.shape)))
        for name, count in parameter_counts(preset).items():
            stated = preset.parts[name].stated
            style = "dim" if stated == NOT_STATED else ""
            listing.add_row(*first, name, f"{count / 1e6:.2f}M", f"[{style}]{stated}[/]" if style else stated)
            first = ("", "", "")
    return listing


if __name__ == "__main__":
    main()
