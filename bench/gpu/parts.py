"""What the command is made of: parts that run in processes of their own, each within its share of the time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..end_to_end.result import Goal


@dataclass(frozen=True, slots=True)
class Findings:
    """What a part found: numbers as JSON, the goals that they tell of, and the part's section of the report."""

    numbers: Any
    goals: tuple[Goal, ...]
    markdown: str


@dataclass(frozen=True, slots=True)
class Setting:
    """What a part is told. seconds: in which it has to be done. output: where files of its own go.

    keep: what it has found so far, in case that it does not come to its end.
    """

    device: str
    seconds: float
    output: Path
    keep: Callable[[Findings], None] = lambda findings: None


Measure = Callable[[Setting], Findings]


@dataclass(frozen=True, slots=True)
class Part:
    """A part. share: of the time, against those of the others. goals: those that it is to tell of, not measured yet."""

    name: str
    title: str
    share: float
    goals: tuple[Goal, ...]
    measure: Measure
