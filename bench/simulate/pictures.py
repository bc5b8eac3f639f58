"""Pictures of simulated fleets, and of a real load beside its simulation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter
from numpy.typing import NDArray

from ..pictures import COLOURS, STYLE, plain_log, save
from .goal import Goal
from .results import FleetResult

Latencies = tuple[NDArray[np.float64], NDArray[np.float64]]


def draw_study(path: Path, results: Sequence[FleetResult], goal: Goal | None, title: str, foot: str) -> None:
    """Latency, what is answered in time, and how busy replicas are, by policy, over replicas or over rates.

    Whichever there are more of is the horizontal axis; of the other each value is a column of panels.
    """
    rates = sorted({r.rate for r in results})
    sizes = sorted({r.replicas for r in results})
    over_rates = len(rates) >= len(sizes) and goal is None
    columns = sizes if over_rates else rates
    policies = list(dict.fromkeys(r.policy for r in results))
    with mpl.rc_context(STYLE):
        width = max(9.0, 5.2 * len(columns) + 2.0)
        figure = Figure(figsize=(width, 8.6), layout="constrained")
        grid = figure.subplots(3, len(columns), sharex="col", sharey="row", squeeze=False, height_ratios=(3, 1.4, 1.4))
        for column, value in enumerate(columns):
            here = [r for r in results if (r.replicas if over_rates else r.rate) == value]
            panels = list(grid[:, column])
            panels[0].set_title(f"{value:g} replicas" if over_rates else f"{value:g} requests/s")
            for policy, colour in zip(policies, _colours(len(policies)), strict=True):
                mine = sorted(
                    (r for r in here if r.policy == policy), key=lambda r: r.rate if over_rates else r.replicas
                )
                _curves(panels, [r.rate if over_rates else r.replicas for r in mine], mine, policy, colour)
            if goal is not None:
                panels[0].axhline(1e3 * goal.seconds, color="0.3", linestyle=":", linewidth=1.2)
                panels[0].annotate(
                    goal.text,
                    (1, 1e3 * goal.seconds),
                    xycoords=panels[0].get_yaxis_transform(),
                    ha="right",
                    va="bottom",
                )
            panels[2].set_xlabel("requests/s of the whole fleet" if over_rates else "replicas")
            for panel in panels:
                panel.set_xscale("log")
            plain_log(panels[2].xaxis)
        grid[0, 0].set(yscale="log", ylabel="ms, p99 solid, p50 dashed")
        plain_log(grid[0, 0].yaxis)
        lowest = min(r.ok / max(1, r.sent) for r in results)
        grid[1, 0].set(ylabel="answered in time", ylim=(min(0.95, 0.98 * lowest), 1.005))
        grid[1, 0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        grid[2, 0].set(ylabel="device busy", ylim=(0, 1.05))
        grid[2, 0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right center")
        figure.suptitle("\n".join(wrap(title, int(11 * width))), x=0.01, ha="left", fontsize=11)
        figure.supxlabel("\n".join(wrap(foot, int(16 * width))), fontsize=8, color="0.4", x=0.01, ha="left")
        save(figure, path)


def _curves(
    panels: Sequence[Axes], x: Sequence[float], results: Sequence[FleetResult], policy: str, colour: str
) -> None:
    latency, in_time, busy = panels
    latency.plot(x, [1e3 * r.latency["p99"] for r in results], "o-", color=colour, markersize=4, label=policy)
    latency.plot(x, [1e3 * r.latency["p50"] for r in results], "--", color=colour, linewidth=1, alpha=0.7)
    in_time.plot(x, [r.ok / max(1, r.sent) for r in results], "o-", color=colour, markersize=4)
    busy.plot(x, [r.device.mean for r in results], "o-", color=colour, markersize=4)
    busy.fill_between(x, [r.device.least for r in results], [r.device.most for r in results], color=colour, alpha=0.08)


def draw_check(path: Path, kinds: Mapping[str, Latencies], title: str, foot: str) -> None:
    """The share of slower requests, real and simulated, in one panel a kind. kinds: seconds of both."""
    columns = min(3, len(kinds))
    rows = math.ceil(len(kinds) / columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6 * columns, 3.4 * rows + 0.8), layout="constrained")
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for panel in grid.flat[len(kinds) :]:
            panel.set_axis_off()
        for panel, (name, both) in zip(grid.flat, kinds.items(), strict=False):
            for values, label, colour in zip(both, ("real", "simulated"), COLOURS, strict=False):
                ordered = 1e3 * np.sort(values)
                left = 1.0 - np.arange(len(ordered)) / max(1, len(ordered))
                panel.step(ordered, left, where="post", color=colour, label=label)
            panel.set(xscale="log", yscale="log", title=name, ylim=(1.0 / max(10, len(both[0])), 1.2))
            plain_log(panel.xaxis)
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
        for panel in grid[:, 0]:
            panel.set_ylabel("share that are slower")
        for panel in grid[-1]:
            panel.set_xlabel("ms from the scheduled arrival")
        grid[0, 0].legend()
        figure.suptitle(title, x=0.01, ha="left")
        figure.supxlabel(foot, fontsize=8, color="0.4", x=0.01, ha="left")
        save(figure, path)


def _colours(count: int) -> Sequence[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
