"""Loads as Markdown, to read and to keep."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ..environment import Environment
from .plan import LoadPlan
from .result import KindResult, LoadResult
from .search import Found, Probe
from .terminal import about_latencies, errors_of, milliseconds, verdict


def load_report(result: LoadResult, environment: Environment) -> str:
    """One load: percentiles, errors, where the time went, and batches."""
    kinds = (*result.kinds, result.total)
    stages = list(result.total.stages)
    models = result.server["models"]
    lines = [
        f"# Load: {result.plan.arrivals}",
        "",
        *_surroundings(result.plan, result, environment),
        "",
        f"Offered {result.offered:.1f} requests/s, achieved {result.achieved:.1f}. Errors: {errors_of(result.errors)}.",
        about_latencies(result),
        "",
        "![Latency of the load](load.png)",
        "",
        *_table(
            ("latency, ms", "model", "sent", "ok", *result.total.latency),
            [
                (f"`{k.name}`", models.get(k.name, ""), str(k.sent), str(k.ok), *map(milliseconds, k.latency.values()))
                for k in kinds
            ],
        ),
    ]
    if not result.plan.closed:
        lines += [
            "",
            *_table(
                ("from the actual sending, ms", *result.total.service),
                [(f"`{kind.name}`", *map(milliseconds, kind.service.values())) for kind in kinds],
            ),
        ]
    lines += [
        "",
        *_table(
            ("where the time went, mean ms", *stages, "rows in its batches"),
            [(f"`{kind.name}`", *_stages(kind, stages), _rows(kind)) for kind in kinds],
        ),
    ]
    if any(kind.errors for kind in result.kinds):
        lines += ["", *_table(("errors", "by code"), [(f"`{k.name}`", errors_of(k.errors)) for k in result.kinds])]
    if result.batches:
        lines += [
            "",
            *_table(
                ("network", "batches", "mean rows"),
                [(name, f"{ran.batches:.0f}", f"{ran.mean_rows:.1f}") for name, ran in result.batches.items()],
            ),
        ]
    return "\n".join([*lines, ""])


def rates_report(probes: Sequence[Probe], found: Found | None, again: Probe | None, environment: Environment) -> str:
    """Loads at several rates, and the highest that meets the goals if it was searched for.

    again: the load once more at that rate.
    """
    first = probes[0].result
    lines = [
        f"# Load: {'the highest rate that meets its goals' if found else 'latency against rate'}",
        "",
        *([f"**{found.summary()[0].upper()}{found.summary()[1:]}.**", ""] if found else []),
        *_surroundings(first.plan, first, environment),
        *(["A rate that misses its goals is tried once more, with other arrivals."] if found else []),
        *([f"Once more at the rate that was found ([details](load.md)), the load {verdict(again)}."] if again else []),
        "",
        "![Latency against rate](rates.png)",
        "",
        *_table(
            ("offered, requests/s", "achieved", "errors", *(f"{name}, ms" for name in first.total.latency), "misses"),
            [
                (
                    *(f"{probe.rate:.4g}", f"{probe.result.achieved:.1f}"),
                    f"{100 * probe.result.total.error_share:.2g} %",
                    *map(milliseconds, probe.result.total.latency.values()),
                    ", ".join(probe.missed),
                )
                for probe in probes
            ],
        ),
    ]
    return "\n".join([*lines, ""])


def _surroundings(plan: LoadPlan, result: LoadResult, environment: Environment) -> list[str]:
    about = ", ".join(f"{name} {value}" for name, value in result.server.items() if name != "models" and value)
    return [
        f"{environment.line()}, {environment.time}.",
        f"Server: {about}.",
        f"Mix `{plan.mix}`, {plan.duration:g} s after {plan.warmup:g} s of warm-up, seed {plan.seed}, "
        f"timeout {plan.timeout:g} s.",
    ]


def _stages(kind: KindResult, stages: Sequence[str]) -> list[str]:
    return [milliseconds(kind.stages.get(stage, math.nan)) for stage in stages]


def _rows(kind: KindResult) -> str:
    return "-" if math.isnan(kind.batch_rows) else f"{kind.batch_rows:.1f}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]
