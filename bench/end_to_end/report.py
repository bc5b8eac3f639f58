"""A measurement as Markdown and as tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .loaded import BARE, COMPILED, EAGER, SERVED
from .result import Cell, EndToEnd, Goal, Timing

HEADINGS = (
    *("case", "engine", "calls", "served p50", "p99", "bare p50", "served over bare", "eager p50", "compiled p50"),
    *("floor by bytes", "update", "rate, served"),
)
SHOWN = (0, 2, 4, 5, 6, 7, 8, 9)
"""What of a row's values the terminal has room for; of ratios, the median."""

UNITS = {"sample": "samples/s", "score": "images/s", "langevin": "steps/s"}


class Row(NamedTuple):
    """A line of the table of a model: a case with one engine."""

    case: str
    values: tuple[str, ...]


def markdown(result: EndToEnd) -> str:
    """The report: the goals, then what each model took, then what was left out."""
    lines = [
        "# End to end",
        "",
        f"{setting(result)}. {result.environment.line()}; load {result.load_after:.1f} when it was done, "
        f"{result.stolen_seconds:.0f} core seconds taken by the machine's host.",
        "",
        *goal_table(result.goals()),
        "",
        "Milliseconds of a whole request, in this process and without gRPC. All contenders of a case take turns, call "
        "by call; `served over bare` is the median over pairs of neighbouring calls, with quartiles. "
        "`p99` of fewer than 100 calls is the slowest one.",
        "",
        "- served: the server's engine, batcher and runner. bare: the networks of the same program on fixed inputs, "
        "with the same session and nothing in between" + (", as captured graphs." if result.copy_bandwidth else "."),
        "- eager: the loop of diffusers' `DDIMPipeline` with its scheduler, or a plain torch loop over the energy and "
        "its gradient. compiled: the same under torch.compile.",
        "- update: what of the served steps' time is not the network's, as the engine tells it.",
        "",
        "![Latency and ratio to the floor](end_to_end.png)",
    ]
    for model, cells in by_model(result):
        lines += ["", f"## {title(result, model)}", "", _line(HEADINGS), _line("---" for _ in HEADINGS)]
        lines += [_line((row.case, *row.values)) for row in rows_of(cells)]
    left_out = [f"- {name}: {why}" for name, why in result.left_out.items()]
    left_out += [
        f"- {cell.case.model}, {cell.case.text}, {name}: {why}"
        for cell in result.cells
        for name, why in cell.left_out.items()
    ]
    if left_out:
        lines += ["", "## Left out", "", *left_out]
    return "\n".join(lines) + "\n"


def setting(result: EndToEnd) -> str:
    """On what, in words."""
    where = f"The CPU, {result.threads} thread{'s' if result.threads > 1 else ''} a network"
    return f"{where if result.device == 'cpu' else result.device}, {result.precision}"


def title(result: EndToEnd, model: str) -> str:
    """A model and its size."""
    compiled = result.compile_seconds.get(model)
    took = f", torch.compile took {compiled:.0f} s" if compiled else ""
    return f"{model}, {result.parameters[model] / 1e6:.2g}M parameters run{took}"


def by_model(result: EndToEnd) -> list[tuple[str, list[Cell]]]:
    """The models that were measured, with their cells."""
    return [(model, result.cells_of(model)) for model in dict.fromkeys(cell.case.model for cell in result.cells)]


def goal_table(goals: Sequence[Goal]) -> list[str]:
    """The lines of a Markdown table of goals."""
    rows = [(goal.name, goal.target, number(goal.value), goal.verdict) for goal in goals]
    return [_line(("goal", "bound", "measured", "")), _line(["---"] * 4), *map(_line, rows)]


def number(value: float | None) -> str:
    """Three digits, or a dash."""
    return "-" if value is None else f"{value:.3g}"


def rows_of(cells: Sequence[Cell]) -> Iterator[Row]:
    """The lines of a model's table; what was not measured at all has none."""
    for cell in cells:
        for engine in dict.fromkeys(timing.engine for timing in cell.timings):
            timings = {t.contender: t for t in cell.timings if t.engine == engine}
            served = timings.get(SERVED)
            yield Row(
                cell.case.text,
                (
                    engine,
                    str(max(timing.calls for timing in timings.values())),
                    *_latency(served),
                    _p50(timings.get(BARE)),
                    _over(served),
                    _p50(timings.get(EAGER)),
                    _p50(timings.get(COMPILED)),
                    "" if cell.floor is None else f"{1e3 * cell.floor:.3g}",
                    "" if served is None or served.update_share is None else f"{100 * served.update_share:.2f} %",
                    "" if served is None else f"{cell.rate(served):.4g} {UNITS[cell.case.task]}",
                ),
            )


def _latency(timing: Timing | None) -> tuple[str, str]:
    return ("", "") if timing is None else (_ms(timing.p50), _ms(timing.p99))


def _p50(timing: Timing | None) -> str:
    return "" if timing is None else _ms(timing.p50)


def _over(timing: Timing | None) -> str:
    if timing is None or timing.over_bare is None:
        return ""
    ratio = timing.over_bare
    return f"{ratio.median:.3f} ({ratio.low:.3f}..{ratio.high:.3f})"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.4g}"


def _line(values: Sequence[str] | Iterator[str]) -> str:
    return f"| {' | '.join(values)} |"


def show(result: EndToEnd, console: Console) -> None:
    """The tables in the terminal, milliseconds at p50; columns that nobody fills are left out."""
    for model, cells in by_model(result):
        rows = list(rows_of(cells))
        used = [index for index in SHOWN if any(row.values[index] for row in rows)]
        if not used:
            continue
        console.print(title(result, model), style="bold")
        table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        table.add_column(HEADINGS[0], no_wrap=True)
        for index in used:
            table.add_column(HEADINGS[1 + index].replace(" p50", ""), justify="right")
        for row in rows:
            table.add_row(row.case, *(row.values[index].partition(" (")[0] for index in used))
        console.print(table)
    for goal in result.goals():
        style = {True: "green", False: "bold red", None: "yellow"}[goal.met]
        console.print(f"{goal.name}: {number(goal.value)} ({goal.target}): {goal.verdict}", style=style)
