"""One picture: latency by network evaluations and rows, the ratio to the bare loop, and the rates of energies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..pictures import COLOURS, STYLE, plain_log, save
from .loaded import BARE, COMPILED, EAGER, SERVED
from .report import UNITS, by_model, setting, title
from .result import UNET, Cell, EndToEnd, Timing

LINES: dict[str, tuple[str, Any]] = {SERVED: ("o", "-"), BARE: ("_", ":"), EAGER: ("x", "--"), COMPILED: ("+", "-.")}
"""Marker and line of each contender; colours are the rows."""

LINEAR = 2.5
"""The largest ratio that a linear axis shows well: small networks on the CPU are far above it."""


def draw(path: Path, result: EndToEnd) -> None:
    """A line of panels for each model of which more than one case was measured."""
    models = [(model, cells) for model, cells in by_model(result) if sum(bool(cell.timings) for cell in cells) > 1]
    if not models:
        return
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12.5, 3.1 * len(models) + 1.2), layout="constrained")
        grid = figure.subplots(len(models), 2, squeeze=False, width_ratios=(1.25, 1))
        for (left, right), (model, cells) in zip(grid, models, strict=True):
            samples = [cell for cell in cells if cell.case.task == "sample"]
            left.set_title(title(result, model))
            if samples:
                _latency(left, samples)
            else:
                _rates(left, cells)
            _ratios(right, cells, result)
        contenders = list(dict.fromkeys(timing.contender for cell in result.cells for timing in cell.timings))
        keys = [
            Line2D([], [], color="0.3", marker=LINES[name][0], linestyle=LINES[name][1], label=name)
            for name in contenders
        ]
        figure.legend(handles=keys, loc="outside upper right", ncols=len(keys), frameon=False)
        figure.suptitle(f"Whole requests in one process: {setting(result)}", x=0.01, ha="left", fontsize=12)
        figure.supxlabel(result.environment.line(), fontsize=8, color="0.4", x=0.01, ha="left")
        save(figure, path)


def _curves(cells: Sequence[Cell]) -> Iterator[tuple[str, str, list[tuple[Cell, Timing]]]]:
    """(engine, contender, what it took for the cells that it ran); plain loops stand for no engine of ours."""
    keys = dict.fromkeys((t.engine, t.contender) for cell in cells for t in cell.timings)
    for engine, contender in keys:
        found = [(cell, t) for cell in cells if (t := cell.timing(contender, engine)) is not None]
        yield engine, contender, found


def _first_engine(cells: Sequence[Cell]) -> str:
    """Of what is drawn as served and bare: the first engine, with which most was measured."""
    return next(timing.engine for cell in cells for timing in cell.timings)


def _latency(axes: Axes, cells: Sequence[Cell]) -> None:
    rows = sorted({cell.case.rows for cell in cells})
    engine = _first_engine(cells)
    for colour, count in zip(COLOURS, rows, strict=False):
        for own, contender, found in _curves([cell for cell in cells if cell.case.rows == count]):
            if contender in (SERVED, BARE) and own != engine:
                continue
            marker, line = LINES[contender]
            x, y = [cell.case.steps for cell, _ in found], [1e3 * timing.p50 for _, timing in found]
            axes.plot(x, y, marker=marker, linestyle=line, color=colour, markersize=5, linewidth=1.1)
            if contender == SERVED:
                text = f"  {count} row{'s' if count > 1 else ''}"
                axes.annotate(text, (x[-1], y[-1]), color=colour, va="center", fontsize=9)
    steps = sorted({cell.case.steps for cell in cells})
    axes.set(xscale="log", yscale="log", xlabel="network evaluations a sample", ylabel=f"p50, ms ({engine})")
    axes.set_xticks(steps, [str(step) for step in steps])
    axes.set_xticks([], minor=True)
    axes.set_xlim(0.85 * steps[0], 1.5 * steps[-1])
    plain_log(axes.yaxis)


def _rates(axes: Axes, cells: Sequence[Cell]) -> None:
    tasks = list(dict.fromkeys(cell.case.task for cell in cells))
    engine = _first_engine(cells)
    for colour, task in zip(COLOURS, tasks, strict=False):
        for own, contender, found in _curves([cell for cell in cells if cell.case.task == task]):
            if contender in (SERVED, BARE) and own != engine:
                continue
            marker, line = LINES[contender]
            x, y = [cell.case.rows for cell, _ in found], [cell.rate(timing) for cell, timing in found]
            label = f"{task}, {UNITS[task]}" if contender == SERVED else None
            axes.plot(x, y, marker=marker, linestyle=line, color=colour, markersize=5, linewidth=1.1, label=label)
    rows = sorted({cell.case.rows for cell in cells})
    axes.set(xscale="log", yscale="log", xlabel="rows", ylabel=f"a second, at p50 ({engine})")
    axes.set_xticks(rows, [str(count) for count in rows])
    axes.set_xticks([], minor=True)
    plain_log(axes.yaxis)
    axes.legend(loc="best", fontsize=9)


def _ratios(axes: Axes, cells: Sequence[Cell], result: EndToEnd) -> None:
    """Served over bare of each case, with quartiles; one colour an engine."""
    cells = [cell for cell in cells if cell.timing(SERVED) is not None]
    if not cells:
        return
    engines = list(dict.fromkeys(timing.engine for cell in cells for timing in cell.timings))
    names = [cell.case.text for cell in cells]
    highest = 1.0
    for index, engine in enumerate(engines):
        for place, cell in enumerate(cells):
            timing = cell.timing(SERVED, engine)
            if timing is None or timing.over_bare is None:
                continue
            ratio = timing.over_bare
            highest = max(highest, ratio.high)
            at = place + 0.25 * (index - (len(engines) - 1) / 2)
            bars = [[ratio.median - ratio.low], [ratio.high - ratio.median]]
            label = engine if place == min(i for i, c in enumerate(cells) if c.timing(SERVED, engine)) else None
            axes.errorbar(at, ratio.median, yerr=bars, fmt="o", color=COLOURS[index], markersize=4, label=label)
    axes.axhline(1.0, color="0.5", linewidth=1)
    if cells[0].case.model == UNET:
        goal = result.goals()[0].bound
        axes.axhline(goal, color="0.5", linewidth=1, linestyle="--")
        axes.text(0.002, goal, f"{goal:.2f}", transform=axes.get_yaxis_transform(), va="bottom", fontsize=8)
    if highest > LINEAR:
        axes.set_yscale("log")
        plain_log(axes.yaxis)
    axes.set_xticks(range(len(names)), names, rotation=55, ha="right", fontsize=7.5)
    axes.set(ylabel="served over bare", xlim=(-0.8, len(names) - 0.4))
    axes.legend(loc="best", fontsize=8)
