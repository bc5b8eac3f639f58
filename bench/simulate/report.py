"""What a study and a check say: tables on the terminal, Markdown and JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..environment import Environment
from .check import Comparison
from .goal import Goal
from .results import FleetResult
from .study import Answer, StudyPlan

Rows = Sequence[tuple[str, ...]]


def fleet_rows(results: Sequence[FleetResult]) -> tuple[tuple[str, ...], Rows]:
    """Head and lines of the table of runs."""
    head = ("rate", "replicas", "policy", "p50 ms", "p99 ms", "p99.9 ms", "in time", "device", "host", "rows", "models")
    rows = [
        (
            f"{r.rate:g}",
            str(r.replicas),
            r.policy,
            *(_ms(r.latency[name]) for name in ("p50", "p99", "p99.9")),
            f"{r.ok / max(1, r.sent):.2%}",
            f"{r.device.mean:.0%} ({r.device.least:.0%}-{r.device.most:.0%})",
            f"{r.host.mean:.0%}",
            f"{_mean_rows(r):.2f}",
            f"{r.models.mean:.1f}",
        )
        for r in results
    ]
    return head, rows


def short_rows(results: Sequence[FleetResult]) -> tuple[tuple[str, ...], Rows]:
    """Of `fleet_rows` what fits on a terminal."""
    head, rows = fleet_rows(results)
    kept = [index for index, name in enumerate(head) if name not in ("p99.9 ms", "host", "models")]
    short = [tuple(cell.partition(" (")[0] for cell in row) for row in rows]
    return tuple(head[i] for i in kept), [tuple(row[i] for i in kept) for row in short]


def _mean_rows(result: FleetResult) -> float:
    values = list(result.batch_rows.values())
    return sum(values) / len(values) if values else math.nan


def _ms(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{1e3 * seconds:.2f}"


def kind_rows(results: Sequence[FleetResult]) -> tuple[tuple[str, ...], Rows]:
    """Head and lines of the table of kinds."""
    head = ("rate", "replicas", "policy", "kind", "sent", "p50 ms", "p99 ms", "not in time")
    rows = [
        (
            *(f"{r.rate:g}", str(r.replicas), r.policy, kind.name, str(kind.sent)),
            *(_ms(kind.latency["p50"]), _ms(kind.latency["p99"])),
            ", ".join(f"{reason} {count}" for reason, count in kind.failed.items()) or "none",
        )
        for r in results
        for kind in r.kinds
    ]
    return head, rows


def answer_rows(goal: Goal, answers: Sequence[Answer], most: int) -> tuple[tuple[str, ...], Rows]:
    """Head and lines of the table of fleets that meet the goal."""
    rows = [(f"{a.rate:g}", a.policy, f"more than {most}" if a.replicas is None else str(a.replicas)) for a in answers]
    return ("rate", "policy", f"replicas for {goal.text}"), rows


def comparison_rows(comparisons: Sequence[Comparison]) -> tuple[tuple[str, ...], Rows]:
    """Head and lines of the table of real and simulated latencies."""
    head = ("load", "kind", "p50 real ms", "simulated", "ratio", "p99 real ms", "simulated", "ratio")
    rows = []
    for comparison in comparisons:
        for kind, pairs in comparison.latency.items():
            cells = [text for p in pairs.values() for text in (_ms(p.real), _ms(p.simulated), f"{p.ratio:.2f}")]
            rows.append((comparison.name, kind, *cells))
    return head, rows


def short_comparison_rows(comparisons: Sequence[Comparison]) -> tuple[tuple[str, ...], Rows]:
    """Of `comparison_rows` what fits on a terminal: all kinds together of each load, each kind of all loads."""
    _, rows = comparison_rows(comparisons)
    head = ("load", "kind", "p50", "sim", "ratio", "p99", "sim", "ratio")
    return head, [row for row in rows if "all" in row[:2]]


def show(console: Console, title: str, table: tuple[tuple[str, ...], Rows]) -> None:
    """Print a table."""
    head, rows = table
    grid = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in head:
        words = name in ("policy", "kind", "load", "not in time")
        grid.add_column(name, justify="left" if words else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*row)
    console.print(grid)


def _markdown(table: tuple[tuple[str, ...], Rows]) -> list[str]:
    head, rows = table
    return ["| " + " | ".join(cells) + " |" for cells in (head, ("---",) * len(head), *rows)]


def what_it_took(results: Sequence[FleetResult]) -> str:
    """One sentence on the cost of the simulation."""
    requests = sum(r.sent for r in results)
    mean = sum(r.request_microseconds * r.sent for r in results) / max(1, requests)
    events = sum(r.events * r.sent for r in results) / max(1, requests)
    return f"{requests} requests simulated, {mean:.0f} µs and {events:.1f} events each"


def write_study(
    folder: Path,
    plan: StudyPlan,
    costs: dict[str, Any],
    results: Sequence[FleetResult],
    goal: Goal | None,
    answers: Sequence[Answer],
    most: int,
    environment: Environment,
) -> None:
    """Write study.json and study.md. costs: where they come from."""
    write_json(
        folder / "study.json",
        {
            "plan": plan,
            "costs": costs,
            "goal": goal,
            "answers": list(answers),
            "results": list(results),
            "environment": environment,
        },
    )
    timeout = "without deadlines" if plan.timeout is None else f"deadlines of {plan.timeout:g} s"
    lines = [
        "# Simulated fleets",
        "",
        f"Mix `{plan.mix}`, {plan.requests} requests measured a run, {timeout}, routers: {plan.routers},"
        f" seed {plan.seed}. {what_it_took(results)}.",
        "",
        f"Simulated on {environment.line()}, {environment.time}. Costs: {describe(costs)}.",
        "",
    ]
    if goal is not None:
        lines += ["## The smallest fleets that meet the goal", "", *_markdown(answer_rows(goal, answers, most)), ""]
    lines += ["## Runs", "", *_markdown(fleet_rows(results)), ""]
    lines += [
        "in time: of all requests. device: share of the time that a step ran, on average (least and most busy replica)."
        " host: share that the thread of handlers worked. rows: of a batch, mean over the networks."
        " models: that a replica was asked for.",
        "",
        "## By kind",
        "",
        *_markdown(kind_rows(results)),
        "",
    ]
    (folder / "study.md").write_text("\n".join(lines))


def describe(source: dict[str, Any]) -> str:
    """Where costs come from, in words."""
    return ", ".join(f"{name} {value}" for name, value in source.items()) or "written by hand"


def write_check(
    folder: Path,
    comparisons: Sequence[Comparison],
    rate: float,
    mix: str,
    costs: dict[str, Any],
    environment: Environment,
) -> None:
    """Write check.json and check.md."""
    write_json(
        folder / "check.json",
        {"mix": mix, "rate": rate, "costs": costs, "comparisons": list(comparisons), "environment": environment},
    )
    lines = [
        "# The simulation beside a real server",
        "",
        f"Mix `{mix}` at {rate:g} requests/s, {environment.line()}, {environment.time}.",
        "The same arrivals and kinds; costs were measured before and after the load, not in it.",
        f"While they were, the host took {costs['stolen']} cores from the machine. A load that lost more or less is no"
        " check of the simulation.",
        "",
        *_markdown(comparison_rows(comparisons)),
        "",
        *_markdown(busy_rows(comparisons)),
        "",
    ]
    (folder / "check.md").write_text("\n".join(lines))


def busy_rows(comparisons: Sequence[Comparison]) -> tuple[tuple[str, ...], Rows]:
    """Head and lines of the table of what the device did."""
    head = ("load", "requests", "failed", "busy real", "simulated", "rows a batch real", "simulated", "cores stolen")
    rows = [
        (
            *(c.name, str(c.sent), str(c.failed), f"{c.busy.real:.1%}", f"{c.busy.simulated:.1%}"),
            *(f"{c.batch_rows.real:.2f}", f"{c.batch_rows.simulated:.2f}", f"{c.stolen:.3f}"),
        )
        for c in comparisons
    ]
    return head, rows


def write_json(path: Path, document: Any) -> None:
    """Write a document, indented. NaN becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")
