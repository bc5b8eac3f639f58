"""What training gives: networks, and the losses that their iterations came to."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import nn

RECENT = 50


class Losses:
    """The losses of every iteration, by name."""

    def __init__(self) -> None:
        self._history: list[dict[str, float]] = []

    def add(self, losses: dict[str, float]) -> None:
        """An iteration has ended."""
        self._history.append(losses)

    def recent(self) -> str:
        """Means of the last `RECENT` iterations, for a line on the terminal."""
        return " ".join(f"{name} {value:.3f}" for name, value in self._means(RECENT).items())

    def last_tenth(self, iterations: int) -> dict[str, float]:
        """Means of the last tenth of so many iterations, for the card."""
        return {name: round(value, 4) for name, value in self._means(max(1, iterations // 10)).items()}

    def _means(self, count: int) -> dict[str, float]:
        last = self._history[-count:]
        return {name: float(np.mean([losses[name] for losses in last])) for name in last[-1]}


@dataclass
class Trained:
    """A generator with its energy, and the losses of the last tenth."""

    generator: nn.Module
    energy: nn.Module
    losses: dict[str, float] = field(default_factory=dict)
