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


def slots_of(program: Program) -> int:
    """How many slots a row takes: one, and one for each prediction that it keeps."""
    return 1 + program.kept_predictions


def has_chains(card: ModelCard) -> bool:
    """Whether rows may be chains of MALA."""
    return card.langevin is not None


def kept_predictions(card: ModelCard, network: str, capacity: int) -> int:
    """How many predictions of a network one row may be asked to keep, where there are so many slots."""
    sampling = card.sampling
    if sampling is None or network != sampling.network or "custom" not in sampling.samplers:
        return 0
    return max(0, min(sampling.accepted_steps()[-1], capacity) - 1)


class RowSizes(NamedTuple):
    """Bytes of one row of a model.

    slot: its registers and their anchors, the sample's accumulator, and what MALA keeps. image: one copy of the sample.
    """

    slot: int
    image: int

    @classmethod
    def of(cls, card: ModelCard) -> RowSizes:
        elements = elements_of(card)
        images = 3 if has_chains(card) else 1
        return cls(
            FLOAT_BYTES * (2 * sum(elements.values()) + images * elements[SAMPLE]), FLOAT_BYTES * elements[SAMPLE]
        )

    def slots(self, limits: Limits) -> int:
        """How many slots there are: as many rows may be in flight, fewer of those that take several."""
        return max(1, min(limits.max_rows_in_flight, limits.state_bytes // self.slot))

    def row_bytes(self, program: Program) -> int:
        """Bytes that one row may come to hold: its slots, result and image."""
        images = program.needs_image + 1
        return slots_of(program) * self.slot + images * self.image
