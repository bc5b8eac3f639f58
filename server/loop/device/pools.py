"""The state of all rows of a model that are in flight, on the device: one slot a row, and one more for padding."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from models.card import ModelCard
from models.program import SAMPLE

from ..sizes import RowSizes, elements_of, has_chains


class Chains(NamedTuple):
    """What MALA keeps of a row (`kernels.reference.metropolis_step`)."""

    place: Tensor
    slope: Tensor
    level: Tensor


class Pools:
    """state, anchor: by register, float32 `(capacity + 1, elements)`. accumulator: like the sample's.

    images, predictions: what the rows of one step start from, and what the host wants of it, `(rows, elements)`.
    chains: of models that have such. kept: the predictions that rows keep, `(capacity, elements)`, of models that may
    be asked to keep any.
    """

    def __init__(self, card: ModelCard, capacity: int, rows: int, device: torch.device) -> None:
        """rows: of the largest batch."""
        self.elements = elements_of(card)
        self.scratch = capacity
        self._device = device
        self.state = {name: self._pool(capacity + 1, name) for name in self.elements}
        self.anchor = {name: self._pool(capacity + 1, name) for name in self.elements}
        self.accumulator = self._pool(capacity + 1, SAMPLE)
        self.images = self._pool(rows, SAMPLE)
        self.predictions = self._pool(rows, SAMPLE)
        self.kept = self._pool(capacity, SAMPLE) if RowSizes.of(card).kept else None
        self.chains: Chains | None = None
        if has_chains(card):
            level = torch.zeros(capacity + 1, dtype=torch.float32, device=device)
            self.chains = Chains(self._pool(capacity + 1, SAMPLE), self._pool(capacity + 1, SAMPLE), level)

    def _pool(self, rows: int, register: str) -> Tensor:
        return torch.zeros(rows, self.elements[register], dtype=torch.float32, device=self._device)
