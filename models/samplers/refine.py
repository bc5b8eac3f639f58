"""Refining a caller's image: its energy, some steps that make it more like the data, and its energy afterwards."""

from __future__ import annotations

from ..card import ModelCard
from ..program import Line, Program
from .langevin import langevin_lines, noise_free_scale, steps_of
from .options import SampleOptions


def with_energies(card: ModelCard, lines: tuple[Line, ...], steps: int) -> Program:
    """A program that starts from the caller's image and scores it before and after the steps, where the model can.

    Their lines are 1, 2, ... of the program where it scores, and 0, 1, ... where not (`first_step`).
    """
    energy = card.energy
    if energy is None or not noise_free_scale(energy):
        return Program(1.0, 0.0, lines, steps=steps)
    score = Line(network=energy.network, scalars={"time": energy.scales[0].time})
    return Program(1.0, 0.0, (score, *lines, score), steps=steps)


def first_step(card: ModelCard) -> int:
    """The number of a refinement's first step in its program, see `with_energies`."""
    return 1 if card.energy is not None and noise_free_scale(card.energy) else 0


def refine_by_langevin(card: ModelCard, options: SampleOptions) -> Program:
    """A chain of Langevin steps from the image; options as for the sampler `langevin`."""
    lines = langevin_lines(card, options, first_step(card))
    return with_energies(card, lines, steps_of(lines))
