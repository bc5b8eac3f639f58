"""Scoring: the energy at one noise scale, by default a program of one line and no update (SPEC 8)."""

from __future__ import annotations

from ..card import ModelCard, ScaleSpec
from ..program import Line, Program
from .options import OptionError, UnsupportedError


def find_scale(card: ModelCard, name: str | None) -> ScaleSpec:
    """The scale of that name, by default the model's first.

    Raises:
        UnsupportedError: the model has no energy.
        OptionError: no scale of that name.
    """
    if card.energy is None:
        raise UnsupportedError("model", f"{card.name} has no energy to score with")
    if not name:
        return card.energy.scales[0]
    for scale in card.energy.scales:
        if scale.name == name:
            return scale
    raise OptionError("scales", f"must be among {', '.join(s.name for s in card.energy.scales)}, got {name!r}")


def score_noised(card: ModelCard, scale: ScaleSpec) -> Program:
    """The energy of `signal * image + noise * n` at the scale's time."""
    if card.energy is None:
        raise UnsupportedError("model", f"{card.name} has no energy to score with")
    line = Line(network=card.energy.network, scalars={"time": scale.time})
    return Program(scale.signal, scale.noise, (line,))
