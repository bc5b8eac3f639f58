"""All that was found as one Markdown page: the goals first, then each part's own section."""

from __future__ import annotations

from collections.abc import Sequence

from ..end_to_end.report import goal_table
from ..end_to_end.result import Goal
from ..environment import Environment
from .schedule import Outcome


def goals_of(outcomes: Sequence[Outcome]) -> list[Goal]:
    """Every goal: as its part found it, or as not measured where the part gave nothing."""
    return [
        goal
        for outcome in outcomes
        for goal in (outcome.part.goals if outcome.findings is None else outcome.findings.goals)
    ]


def succeeded(outcomes: Sequence[Outcome]) -> bool:
    """Whether every part gave something, and no goal is missed or unmeasured."""
    return all(outcome.error is None for outcome in outcomes) and all(goal.met for goal in goals_of(outcomes))


def markdown(environment: Environment, outcomes: Sequence[Outcome], budget: float) -> str:
    """The page."""
    gpus = ", ".join(environment.gpus) or "no GPU"
    lines = [
        "# On a GPU",
        "",
        f"{gpus}. {environment.line()}, {environment.time}.",
        "",
        ", ".join(f"{name} {version}" for name, version in environment.packages.items()) + ".",
        "",
        *goal_table(goals_of(outcomes)),
        "",
        f"| part | seconds, of {budget:.0f} | |",
        "| --- | --- | --- |",
        *(f"| {o.part.title} | {o.seconds:.0f} of {o.given:.0f} | {_ending(o)} |" for o in outcomes),
    ]
    for outcome in outcomes:
        lines += ["", f"## {outcome.part.title}"]
        if outcome.error is not None:
            lines += ["", "It failed:", "", "```", outcome.error, "```"]
        if outcome.findings is not None:
            lines += ["", _deeper(outcome.findings.markdown)]
    return "\n".join(lines) + "\n"


def _ending(outcome: Outcome) -> str:
    return "done" if outcome.error is None else "failed: " + outcome.error.splitlines()[0]


def _deeper(text: str) -> str:
    """A page of its own as a section: without its title, its headings one level down."""
    lines = text.strip().splitlines()
    if lines and lines[0].startswith("# "):
        lines = lines[1:]
    return "\n".join("#" + line if line.startswith("#") else line for line in lines).strip()
