"""What a load says on the terminal."""

from __future__ import annotations

import math

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .result import LoadResult


def show(result: LoadResult, console: Console) -> None:
    """Print a run as a table."""
    closed = result.plan.closed
    since = "service time" if closed else "latency from the scheduled arrival"
    table = Table(title=f"{since}, ms", title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("kind", no_wrap=True)
    stages = list(result.total.stages)
    for column in ("sent", "ok", *result.total.latency, *stages, "rows"):
        table.add_column(column, justify="right")
    for kind in (*result.kinds, result.total):
        times = (*kind.latency.values(), *(kind.stages.get(stage, math.nan) for stage in stages))
        table.add_row(
            *(kind.name, str(kind.sent), str(kind.ok)),
            *("-" if math.isnan(time) else f"{1e3 * time:.1f}" for time in times),
            "-" if math.isnan(kind.batch_rows) else f"{kind.batch_rows:.1f}",
        )
    console.print(table)
    console.print("right of max: mean time by stage, and rows in the batches ridden in")
    if closed:
        console.print("a closed loop: the server sets the pace, so that a stall is charged to the requests in it alone")
    else:
        console.print(f"sent late by p50 {1e3 * result.lag['p50']:.2f} ms, p99 {1e3 * result.lag['p99']:.2f} ms")
    console.print(f"offered {result.offered:.1f} requests/s, achieved {result.achieved:.1f}")
    for network, ran in result.batches.items():
        console.print(f"{network}: {ran.batches:.0f} batches of {ran.mean_rows:.1f} rows on average")
    console.print(f"errors: {', '.join(f'{code} {count}' for code, count in result.errors.items()) or 'none'}")
