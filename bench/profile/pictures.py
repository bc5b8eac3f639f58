"""The stages of a request as one bar, and where it is ours."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..pictures import COLOURS, STYLE, save
from .result import Profile

OURS, THEIRS = COLOURS[1], COLOURS[0]


def draw_stages(path: Path, profile: Profile) -> None:
    """Each stage where it lies in the median request, in the order in which they come."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 5.6), layout="constrained")
        axes = figure.subplots()
        began = 0.0
        for place, stage in enumerate(profile.stages):
            width = 1e6 * stage.p50
            axes.barh(place, width, left=began, color=OURS if stage.ours else THEIRS, height=0.75)
            axes.text(began + width, place, f" {width:.0f}", va="center", fontsize=9, color="0.3")
            began += width
        axes.set_yticks(range(len(profile.stages)), [stage.name for stage in profile.stages])
        axes.set_ylim(len(profile.stages) - 0.4, -0.6)
        axes.set_xlim(0, 1.06 * began)
        axes.set_xlabel("us, medians of the stages one after the other")
        axes.set_title(f"{profile.model}, {profile.task}, one client")
        keys = [
            Patch(color=OURS, label="this project's code"),
            Patch(color=THEIRS, label="gRPC, engine, kernel, client"),
        ]
        axes.legend(handles=keys, loc="upper right")
        figure.supxlabel(profile.environment.line(), fontsize=8, color="0.4", x=0.01, ha="left")
        save(figure, path)
