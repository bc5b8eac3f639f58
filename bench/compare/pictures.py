"""A comparison as one sheet: a panel for each scenario, bars with the spread over the rounds."""

from __future__ import annotations

import math
from pathlib import Path
from textwrap import fill

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.pictures import COLOURS, DPI, STYLE

from .report import is_seconds
from .result import LOOPS, OURS, Comparison

SHOWN = {"idle": "paced_p50", "small": "rows_per_second", "bulk": "rows_per_second", "large": "rows_per_second"}
"""The number that a scenario's panel shows; of the others the tail of the calls that matter, or the goodput's share."""
COLUMNS = 3
TITLE_WIDTH = 44
"""Characters of a line."""


def draw(path: Path, comparison: Comparison) -> None:
    """Write the sheet."""
    scenarios = [name for name in comparison.setup.scenarios if comparison.servers(name)]
    columns = min(COLUMNS, len(scenarios))
    rows = math.ceil(len(scenarios) / columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2 * columns, 3.9 * rows + 0.4), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, scenario in zip(panels, scenarios, strict=False):
            _panel(panel, comparison, scenario)
        for panel in panels[len(scenarios) :]:
            panel.set_visible(False)
        figure.supxlabel(comparison.environment.line(), fontsize=8, color="0.4")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI, facecolor="white")


def shown_number(comparison: Comparison, scenario: str) -> str:
    """What a scenario's panel shows."""
    numbers = comparison.numbers(scenario)
    tails = [number for number in numbers if number.endswith("p99")]
    return SHOWN.get(scenario) or (tails[0] if tails else "share")


def _panel(panel: Axes, comparison: Comparison, scenario: str) -> None:
    number = shown_number(comparison, scenario)
    factor = 1e3 if is_seconds(number) else 1.0
    servers = [name for name in comparison.servers(scenario) if comparison.spread(scenario, name, number)]
    largest = 0.0
    for place, name in enumerate(servers):
        spread = comparison.spread(scenario, name, number)
        if spread is None or not math.isfinite(spread.median):
            panel.text(0.0, place, " unanswered", va="center", fontsize=9)
            continue
        median, low, high = (factor * value for value in (spread.median, spread.low, spread.high))
        high = high if math.isfinite(high) else median
        largest = max(largest, high)
        colour = COLOURS[0] if name in OURS else COLOURS[6] if name in LOOPS else COLOURS[4]
        panel.barh(place, median, color=colour, alpha=0.85, height=0.7)
        panel.plot([low, high], [place, place], color="0.2", linewidth=1.2)
        keeps_up = not number.endswith("p99") or comparison.keeps_up(scenario, name)
        text = f" {median:.3g}" + ("" if keeps_up else ", falls behind")
        panel.text(high, place, text, va="center", fontsize=9)
    panel.set_yticks(range(len(servers)), [comparison.setup.titles[name] for name in servers])
    panel.invert_yaxis()
    panel.set_xlim(0.0, (largest or 1.0) * 1.5)  # room for the numbers
    panel.grid(axis="y", visible=False)
    unit = "ms" if is_seconds(number) else {"rows_per_second": "samples/s"}.get(number, "")
    label = {"rows_per_second": "throughput", "share": "goodput at 3x the capacity, of its peak"}
    panel.set_xlabel(", ".join(part for part in (label.get(number, number.replace("_", " ")), unit) if part))
    panel.set_title(fill(comparison.setup.scenarios[scenario], TITLE_WIDTH), fontsize=10)
