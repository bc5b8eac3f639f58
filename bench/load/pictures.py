"""Pictures of loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ..percentiles import percentiles
from ..pictures import COLOURS, STYLE, plain_log, save
from ..sender import Outcome
from .result import LoadResult


def draw_load(path: Path, result: LoadResult, outcomes: Sequence[Outcome], foot: str) -> None:
    """Latency of one load: percentiles by kind, the share of slower requests, and latency over time.

    outcomes: of the result, the warm-up's among them. foot: one line on the surroundings.
    """
    plan, kinds = result.plan, [kind.name for kind in result.kinds]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(15, 5.2), layout="constrained")
        bars, tail, over_time = figure.subplots(1, 3)
        measured = [outcome for outcome in outcomes if outcome.ok and outcome.scheduled >= plan.warmup]
        for index, name in enumerate(kinds):
            colour = COLOURS[index % len(COLOURS)]
            latency = np.sort([1e3 * outcome.latency for outcome in measured if outcome.kind == index])
            if len(latency) == 0:
                continue
            points = percentiles(latency)
            bars.plot([points["p50"], points["p99"]], [index, index], color=colour, linewidth=2, alpha=0.5)
            for marker, share in (("o", "p50"), ("D", "p90"), ("s", "p99")):
                bars.plot(points[share], index, marker, color=colour, markersize=7)
            # The share that is slower than each latency; the slowest is drawn at 1/n, not at 0, which a log axis lacks.
            tail.step(latency, 1.0 - np.arange(len(latency)) / len(latency), where="post", color=colour, label=name)
            when = [outcome.scheduled for outcome in outcomes if outcome.ok and outcome.kind == index]
            how_long = [1e3 * outcome.latency for outcome in outcomes if outcome.ok and outcome.kind == index]
            over_time.plot(when, how_long, ".", color=colour, markersize=3, alpha=0.6)
        bars.set(xscale="log", xlabel="ms from the scheduled arrival", title="p50 ●   p90 ◆   p99 ■")
        bars.set_yticks(range(len(kinds)), kinds)
        bars.set_ylim(len(kinds) - 0.5, -0.5)
        tail.set(xscale="log", yscale="log", xlabel="ms", ylabel="share of requests that are slower", title="tail")
        if measured:
            tail.legend(fontsize=9)
        over_time.set(yscale="log", xlabel="s, scheduled arrival", ylabel="ms", title="latency over time")
        for axis in (bars.xaxis, tail.xaxis, over_time.yaxis):
            plain_log(axis)
        tail.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
        if plan.warmup:
            over_time.axvspan(0, plan.warmup, color="0.9", zorder=0)
            over_time.text(0.02, 0.98, "warm-up", transform=over_time.get_xaxis_transform(), va="top", color="0.4")
        failed = [outcome.scheduled for outcome in outcomes if not outcome.ok]
        if failed:
            over_time.set_title("latency over time   × failed")
            over_time.plot(
                failed, [1.0] * len(failed), "x", color="red", transform=over_time.get_xaxis_transform(), clip_on=False
            )
        figure.suptitle(f"{plan.arrivals} for {plan.duration:g} s: {plan.mix}", x=0.01, ha="left")
        figure.supxlabel(foot, fontsize=8, color="0.4", x=0.01, ha="left")
        save(figure, path)
