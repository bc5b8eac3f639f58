"""`python -m bench gate NEW OLD`: which ratios of a result are worse than those of an earlier one, beyond the noise."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .ratios import GateError, Ratio
from .readers import read_result
from .verdict import LEAST, MARGIN, Line, Verdict, differences, judge

STYLES = {
    Verdict.WORSE: "bold red",
    Verdict.MAYBE_WORSE: "yellow",
    Verdict.BETTER: "bold green",
    Verdict.MAYBE_BETTER: "green",
    Verdict.GONE: "yellow",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench gate`."""
    parser.add_argument("new", type=Path, help="compare.json, soak.json, load.json, or the zoo's quality.json")
    parser.add_argument("old", type=Path, help="the same of the state to compare with, e.g. as committed")
    parser.add_argument(
        "--margin",
        type=float,
        default=MARGIN,
        help="gap between both ranges of rounds, in widths of the wider one, from which on a move counts,"
        " default %(default)g",
    )
    parser.add_argument("--least", type=float, default=LEAST, help="smallest move that counts, default %(default)g")
    parser.add_argument("--all", action="store_true", help="ratios that are gone or not measured any more fail, too")


def main(options: argparse.Namespace, console: Console) -> int:
    """Compare, print, and return 1 where something is worse."""
    for name in ("margin", "least"):
        if not 0 <= getattr(options, name) < math.inf:
            raise GateError(f"{name}: must not be negative, got {getattr(options, name):g}")
    new, old = read_result(options.new), read_result(options.old)
    lines = judge(new, old, options.margin, options.least)
    console.print(_table(lines))
    for difference in differences(new.setting, old.setting):
        console.print(f"not measured with the same: {difference}")
    if new.left_out:
        console.print(f"not compared, as they are no ratios: {', '.join(new.left_out)}")
    counts = Counter(line.verdict for line in lines)
    console.print(", ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict if counts[verdict]))
    failing = {Verdict.WORSE, Verdict.GONE, Verdict.UNKNOWN} if options.all else {Verdict.WORSE}
    return 1 if any(line.verdict in failing and line.old is not None for line in lines) else 0


def _table(lines: Sequence[Line]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    # On 80 columns the ranges are what gives way: a ratio without a name, or without its verdict, tells nothing.
    table.add_column("ratio", overflow="fold", min_width=16)
    for heading in ("old", "new"):
        table.add_column(heading, justify="right", overflow="fold")
    table.add_column("change", justify="right", no_wrap=True)
    table.add_column("verdict", justify="right", no_wrap=True, min_width=14)
    for line in lines:
        change = "" if math.isnan(line.change) else f"{line.change:+.1%}"
        table.add_row(
            *(line.name, _text(line.old), _text(line.new), change, line.verdict.value),
            style=STYLES.get(line.verdict),
        )
    return table


def _text(ratio: Ratio | None) -> str:
    """Its value, and its range over the rounds."""
    if ratio is None:
        return "-"
    return f"{ratio.value:.3g} ({ratio.low:.3g}..{ratio.high:.3g})" if ratio.rounds else f"{ratio.value:.3g}"
