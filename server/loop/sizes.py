"""How many bytes the rows of a model take, and how many of them there may be."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from models.card import ModelCard
from models.program import SAMPLE, Program

from ..config import Limits

FLOAT_BYTES = 4


def elements_of(card: ModelCard) -> dict[str, int]:
    """Elements of every register, `sample` first."""
    return {name: prod(shape) for name, shape in card.register_shapes().items()}


def has_chains(card: ModelCard) -> bool:
    """Whether rows may be chains of MALA, of which more is kept than their state."""
    return card.langevin is not None


def kept_predictions(card: ModelCard, network: str, capacity: int) -> int:
    """How many predictions of a network one row may be asked to keep, where there is room for so many."""
    sampling = card.sampling
    if sampling is None or network != sampling.network or "custom" not in sampling.samplers:
        return 0
    return min(sampling.accepted_steps()[-1] - 1, capacity)


class RowSizes(NamedTuple):
    """Bytes of one row of a model.

    slot: its registers and their anchors, the sample's accumulator, and what MALA keeps. image: one copy of the sample.
    kept: a prediction for each slot, in a pool that the rows share which keep any; 0 where none may.
    """

    slot: int
    image: int
    kept: int

    @classmethod
    def of(cls, card: ModelCard) -> RowSizes:
        elements = elements_of(card)
        image, keeps = FLOAT_BYTES * elements[SAMPLE], card.sampling is not None and "custom" in card.sampling.samplers
        own = 3 if has_chains(card) else 1
        return cls(FLOAT_BYTES * 2 * sum(elements.values()) + own * image, image, image if keeps else 0)

    def slots(self, limits: Limits) -> int:
        """How many rows may be in flight, with a result and a caller's image each beside their slot."""
        return max(1, min(limits.max_rows_in_flight, limits.state_bytes // (self.slot + self.kept + 2 * self.image)))

    def row_bytes(self, program: Program) -> int:
        """Bytes that one row may come to hold: its slot, predictions, result and image."""
        return self.slot + (program.kept_predictions + program.needs_image + 1) * self.image
