"""Pictures of loads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, PercentFormatter
from numpy.typing import NDArray

from ..pictures import COLOURS, STYLE, colours_for, plain_log, save
from ..sender import Outcome
from .goals import ERRORS, Goal
from .result import ALL, STEP_STAGES, LoadResult
from .search import Found, Probe

WIDTH = 15.0
"""Inches."""
STAGE_COLOURS = {
    "late": "#bbbbbb",
    "queue": "#e69f00",
    "steps": "#0072b2",
    "network": "#0072b2",
    "update": "#009e73",
    "encode": "#f0e442",
    "waits, host": "#cc79a7",
    "wire": "#56b4e9",
    "waits, host, wire": "#cc79a7",
    "server and wire": "#56b4e9",
}
MOST_POINTS = 20_000
"""Of latencies over time in a picture; of more an even choice is drawn."""


def draw_load(path: Path, result: LoadResult, outcomes: Sequence[Outcome], foot: str) -> None:
    """One load: percentiles, latency over time, where the time went, and the server's batches if they were watched.

    outcomes: of the result, the warm-up's among them. foot: one line on the surroundings.
    """
    plan = result.plan
    strips = ("rows", "busy", "flight") if result.timeline else ()
    below = [["stages", strip] for strip in strips] or [["stages", "stages"]] * 3
    mosaic: Any = [*[["tail", "time"]] * 3, *below]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 9.5), layout="constrained")
        axes = figure.subplot_mosaic(mosaic, width_ratios=(1, 1.15), height_ratios=[1] * len(mosaic))
        colours = dict(zip([kind.name for kind in result.kinds], colours_for(len(result.kinds)), strict=True))
        measured = [outcome for outcome in outcomes if outcome.ok and outcome.scheduled >= plan.warmup]
        _tails(axes["tail"], result, measured, colours)
        _over_time(axes["time"], result, outcomes, list(colours.values()))
        _stages(axes["stages"], result)
        if strips:
            _batches(axes["rows"], axes["busy"], axes["flight"], result)
        title = f"{plan.arrivals}, {plan.duration:g} s: {plan.mix}"
        figure.suptitle(fill(title, 150), x=0.01, ha="left", fontsize=12)
        figure.supxlabel(foot, fontsize=8, color="0.4", x=0.01, ha="left")
        save(figure, path)


def _depth(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """The place of a share of requests on the axis: each nine is as long as the one before it."""
    return -np.log10(1.0 - share)


def _percentile_axis(axis: Axis, deepest: float) -> None:
    shares = [share for share in (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999) if _depth(np.array(share)) <= deepest]
    axis.set_major_locator(FixedLocator([float(_depth(np.array(share))) for share in shares]))
    axis.set_major_formatter(FuncFormatter(lambda place, _: f"{100 * (1 - 10**-place):.6g}%"))


def _tails(axes: Axes, result: LoadResult, measured: Sequence[Outcome], colours: dict[str, str]) -> None:
    deepest = 1.0

    def curve(latencies: Sequence[float], colour: str, label: str, style: str, width: float) -> None:
        nonlocal deepest
        ordered = 1e3 * np.sort(latencies)
        # Each latency stands at the middle of its share, so that the slowest is at 1 - 1/2n and not infinitely deep.
        depth = _depth((np.arange(len(ordered)) + 0.5) / len(ordered))
        deepest = max(deepest, float(depth[-1]))
        axes.plot(depth, ordered, style, color=colour, label=label, linewidth=width)

    for index, (name, colour) in enumerate(colours.items()):
        own = [outcome.latency for outcome in measured if outcome.kind == index]
        if own:
            curve(own, colour, name, "-", 1.6)
    if measured and len(colours) > 1:
        curve([outcome.latency for outcome in measured], "black", ALL, "-", 2.2)
    if measured and not result.plan.closed:
        curve([outcome.service for outcome in measured], "black", f"{ALL}, from the actual sending", "--", 1.2)
    _percentile_axis(axes.xaxis, deepest)
    since = "service time" if result.plan.closed else "from the scheduled arrival"
    axes.set(yscale="log", xlabel="percentile of the requests", ylabel="ms", title=f"latency, {since}")
    plain_log(axes.yaxis)
    if measured:
        axes.legend(fontsize=9, loc="lower right")
    else:
        axes.text(0.5, 0.5, "no request was answered", transform=axes.transAxes, ha="center", color="0.4")


def _over_time(axes: Axes, result: LoadResult, outcomes: Sequence[Outcome], colours: Sequence[str]) -> None:
    answered = [outcome for outcome in outcomes if outcome.ok]
    shown = answered[:: -(-len(answered) // MOST_POINTS) or 1]
    for index, colour in enumerate(colours):
        own = [outcome for outcome in shown if outcome.kind == index]
        axes.plot(
            [outcome.scheduled for outcome in own],
            [1e3 * outcome.latency for outcome in own],
            ".", color=colour, markersize=3, alpha=0.6,
        )  # fmt: skip
    axes.set(yscale="log", ylabel="ms", title="latency over time", xlim=(0, result.plan.seconds))
    axes.set_xlabel("s, when it was sent" if result.plan.closed else "s, scheduled arrival")
    plain_log(axes.yaxis)
    if result.plan.warmup:
        axes.axvspan(0, result.plan.warmup, color="0.9", zorder=0)
        axes.text(0.005, 0.98, " warm-up", transform=axes.transAxes, va="top", color="0.4")
    failed = [outcome.scheduled for outcome in outcomes if not outcome.ok]
    if failed:
        axes.set_title("latency over time   × failed")
        top = axes.get_xaxis_transform()
        axes.plot(failed, [1.0] * len(failed), "x", color="red", transform=top, clip_on=False, alpha=0.5)


def _stages(axes: Axes, result: LoadResult) -> None:
    kinds = (*result.kinds, result.total)
    left = np.zeros(len(kinds))
    for stage in result.total.stages:
        width = np.array([1e3 * max(kind.stages.get(stage, 0.0), 0.0) for kind in kinds])
        bars = axes.barh(range(len(kinds)), width, 0.7, left, color=STAGE_COLOURS[stage], label=stage)
        left += width
        # A part that is too narrow for its number goes without.
        longest = max(sum(kind.stages.values()) for kind in kinds) * 1e3
        labels = [f"{value:.1f}" if value > 0.06 * longest else "" for value in width]
        axes.bar_label(
            bars, labels, label_type="center", fontsize=8, color="white" if stage in STEP_STAGES else "black"
        )
    axes.set_yticks(range(len(kinds)), [fill(kind.name, 24) for kind in kinds], fontsize=9)
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    axes.set(xlabel="ms, mean", title="where the time went")
    axes.grid(visible=False, axis="y")
    if result.total.stages:
        axes.legend(fontsize=9, loc="lower right")


def _batches(rows: Axes, busy: Axes, flight: Axes, result: LoadResult) -> None:
    timeline = result.timeline
    edges = [interval.start for interval in timeline] + [timeline[-1].start + timeline[-1].seconds]
    names = sorted({name for interval in timeline for name in interval.networks})
    for name, colour in zip(names, colours_for(len(names)), strict=True):
        ran = [interval.networks[name].mean_rows if name in interval.networks else math.nan for interval in timeline]
        rows.stairs(ran, edges, color=colour, label=name, linewidth=1.6, baseline=None)
    rows.set(title="rows in a batch, mean", ylim=(0, None))
    if names:
        rows.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1.0, 0.97), ncols=len(names))
    busy.stairs([interval.busy for interval in timeline], edges, fill=True, color=COLOURS[0], alpha=0.5)
    busy.set(title="time in steps", ylim=(0, max(1.0, *(interval.busy for interval in timeline))))
    busy.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    flight.plot(edges[1:], [interval.in_flight for interval in timeline], ".-", color=COLOURS[0], label="in flight")
    flight.plot(edges[1:], [interval.waiting for interval in timeline], ".-", color=COLOURS[1], label="waiting")
    flight.set(title="rows on the server", xlabel="s", ylim=(0, None))
    flight.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1.0, 0.97), ncols=2)
    for axes in (rows, busy, flight):
        axes.set_xlim(0, result.plan.seconds)
        axes.axvspan(0, result.plan.warmup, color="0.9", zorder=0)
    for axes in (rows, busy):
        axes.tick_params(labelbottom=False)


def draw_rates(path: Path, probes: Sequence[Probe], goals: Sequence[Goal], found: Found | None, foot: str) -> None:
    """Latency, answers and errors against the offered rate; the goals, and the rate that was found.

    foot: one line on the surroundings.
    """
    plan = probes[0].result.plan
    # Of a rate that was tried twice the second time counts.
    last = {probe.rate: probe for probe in probes}
    ordered = [last[rate] for rate in sorted(last)]
    rates = [probe.rate for probe in ordered]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 6.0), layout="constrained")
        axes = figure.subplot_mosaic([["latency", "answers"], ["latency", "errors"]], width_ratios=(1.5, 1))
        latency, answers, errors = axes["latency"], axes["answers"], axes["errors"]
        for (measure, marker), colour in zip((("p50", "o"), ("p90", "D"), ("p99", "s")), COLOURS, strict=False):
            values = [1e3 * probe.result.total.latency[measure] for probe in ordered]
            latency.plot(rates, values, "-", color=colour, label=measure, zorder=1)
            for met in (True, False):
                own = [(r, v) for r, v, probe in zip(rates, values, ordered, strict=True) if probe.met == met]
                face = colour if met else "white"
                latency.plot(*zip(*own, strict=True) if own else ((), ()), marker, color=colour, mfc=face, zorder=2)
        repeated = [probe for probe in probes if last[probe.rate] is not probe]
        latency.plot(
            [probe.rate for probe in repeated],
            [1e3 * probe.result.total.latency["p99"] for probe in repeated],
            "x", color=COLOURS[2], alpha=0.6,
        )  # fmt: skip
        latency.set(xscale="log", yscale="log", xlabel="offered, requests/s", ylabel="ms")
        misses = "   ○ misses the goals" if any(not probe.met for probe in probes) else ""
        latency.set_title(f"latency of all{misses}{'   × tried again' if repeated else ''}")
        plain_log(latency.xaxis)
        plain_log(latency.yaxis)
        for goal in goals:
            if goal.measure != ERRORS:
                latency.axhline(1e3 * goal.bound, color="0.3", linestyle="--", linewidth=1)
                latency.text(
                    *(0.01, 1e3 * goal.bound, goal.text),
                    transform=latency.get_yaxis_transform(), va="bottom", fontsize=9, color="0.3",
                )  # fmt: skip
        latency.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, borderaxespad=0.2)
        answers.plot([0.0, rates[-1]], [0.0, rates[-1]], "--", color="0.5", linewidth=1, label="offered")
        answers.plot(rates, [probe.result.achieved for probe in ordered], "o-", color=COLOURS[0], label="answered")
        answers.set(title="answers, requests/s", ylim=(0, None))
        answers.legend()
        errors.plot(rates, [probe.result.total.error_share for probe in ordered], "o-", color=COLOURS[1])
        errors.set(title="share of errors", xlabel="offered, requests/s", ylim=(0, None))
        errors.yaxis.set_major_formatter(PercentFormatter(1.0))
        for axes_of_rate in (answers, errors):
            axes_of_rate.set_xlim(0, None)
        if found is not None and found.rate is not None:
            for each in (latency, answers, errors):
                each.axvline(found.rate, color="0.15", linewidth=1.4)
            latency.text(
                found.rate, 1.0, f" {found.rate:.4g}/s", transform=latency.get_xaxis_transform(), va="top", fontsize=10
            )
        law = str(plan.arrivals).partition(",")[0]
        title = f"{law}, {plan.duration:g} s at each rate: {plan.mix}"
        figure.suptitle(fill(title, 150), x=0.01, ha="left", fontsize=12)
        figure.supxlabel(foot, fontsize=8, color="0.4", x=0.01, ha="left")
        save(figure, path)
