"""How many bytes the rows of a model take, and how many of them there may be."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from models.bundle import ModelCard
from models.program import SAMPLE, Program

from ..config import Limits

FLOAT_BYTES = 4


def elements_of(card: ModelCard) -> dict[str, int]:
    """Elements of every register, `sample` first."""
    return {name: prod(shape) for name, shape in card.register_shapes().items()}


class RowSizes(NamedTuple):
    """Bytes of one row of a model.

    slot: its registers and their anchors, and the sample's accumulator. image: one copy of the sample.
    """

    slot: int
    image: int

    @classmethod
    def of(cls, card: ModelCard) -> RowSizes:
        elements = elements_of(card)
        return cls(FLOAT_BYTES * (2 * sum(elements.values()) + elements[SAMPLE]), FLOAT_BYTES * elements[SAMPLE])

    def slots(self, limits: Limits) -> int:
        """How many rows may be in flight."""
        return max(1, min(limits.max_rows_in_flight, limits.state_bytes // self.slot))

    def row_bytes(self, program: Program) -> int:
        """Bytes that one row may come to hold: slot, result, image, what MALA keeps, `custom`'s predictions."""
        images = program.uses_accumulator + program.needs_image + 1
        images += len(program.lines) if program.keeps_history else 0
        images += 2 if program.lines[-1].kind == "metropolis" else 0
        return self.slot + images * self.image
