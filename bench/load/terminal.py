"""What a load says on the terminal when it is over."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .result import LoadResult
from .search import Probe


def milliseconds(seconds: float) -> str:
    """For a table; `-` for what was not measured."""
    return "-" if math.isnan(seconds) else f"{1e3 * seconds:.1f}"


def about_latencies(result: LoadResult) -> str:
    """What the latencies of a load are, in one sentence."""
    if result.plan.closed:
        return (
            "Latencies are service times: in a closed loop nothing is due while the clients wait, so that a stall is "
            "charged to the requests in it alone."
        )
    late = f"sent late by p50 {1e3 * result.lag['p50']:.2f} ms, p99 {1e3 * result.lag['p99']:.2f} ms"
    return f"Latencies run from the scheduled arrivals; the load generator {late}."


def errors_of(errors: dict[str, int]) -> str:
    """Counts by code, in words."""
    return ", ".join(f"{code} {count}" for code, count in errors.items()) or "none"


def _table(title: str, columns: Iterable[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    first, *others = columns
    table.add_column(first, overflow="fold")
    for column in others:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def show(result: LoadResult, console: Console) -> None:
    """Print a run as tables."""
    kinds = (*result.kinds, result.total)
    console.print(
        _table(
            "latency, ms",
            ("kind", "sent", "ok", *result.total.latency),
            [(kind.name, str(kind.sent), str(kind.ok), *map(milliseconds, kind.latency.values())) for kind in kinds],
        )
    )
    stages = list(result.total.stages)
    console.print(
        _table(
            "where the time went, mean ms, and rows in the batches ridden in",
            ("kind", *stages, "rows"),
            [
                (
                    kind.name,
                    *(milliseconds(kind.stages.get(stage, math.nan)) for stage in stages),
                    "-" if math.isnan(kind.batch_rows) else f"{kind.batch_rows:.1f}",
                )
                for kind in kinds
            ],
        )
    )
    for network, ran in result.batches.items():
        console.print(f"{network}: {ran.batches:.0f} batches of {ran.mean_rows:.1f} rows on average")
    console.print(about_latencies(result))
    console.print(f"offered {result.offered:.1f} requests/s, achieved {result.achieved:.1f}")
    console.print(f"errors: {errors_of(result.errors)}")


def show_probes(probes: Sequence[Probe], console: Console) -> None:
    """Print loads at several rates as a table."""
    rows = []
    for probe in probes:
        total = probe.result.total
        rows.append(
            (
                f"{probe.rate:.4g}",
                *(f"{probe.result.achieved:.1f}", f"{100 * total.error_share:.2g} %"),
                *map(milliseconds, total.latency.values()),
                ", ".join(probe.missed),
            )
        )
    measures = probes[0].result.total.latency if probes else ()
    console.print(_table("latency, ms", ("offered/s", "achieved/s", "errors", *measures, "missed"), rows))


def verdict(probe: Probe) -> str:
    """Whether a load meets its goals, in words."""
    return "meets the goals" if probe.met else f"misses: {', '.join(probe.missed)}"


def line_of(probe: Probe, judged: bool) -> str:
    """One line on a probe that has just ended. judged: whether there are goals to hold it against."""
    total = probe.result.total
    p50, p99 = milliseconds(total.latency["p50"]), milliseconds(total.latency["p99"])
    errors = f"errors {100 * total.error_share:.2g} %"
    ending = f", {verdict(probe)}" if judged else ""
    return f"{probe.rate:.4g} requests/s: p50 {p50} ms, p99 {p99} ms, {errors}{ending}"
