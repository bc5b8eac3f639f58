"""The state of all rows of a model that are in flight, on the device: one slot a row, and one more for padding."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from models.bundle import ModelCard
from models.program import SAMPLE

from ..sizes import elements_of


class Chains(NamedTuple):
    """What MALA keeps of a row (`kernels.reference.metropolis_step`)."""

    place: Tensor
    slope: Tensor
    level: Tensor


class Pools:
    """state, anchor: by register, float32 `(capacity + 1, elements)`. accumulator: like the sample's.

    images, predictions: what the rows of one step start from, and what the host wants of it, `(rows, elements)`.
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
        self._chains: Chains | None = None

    def chains(self) -> Chains:
        """Made when the first row needs them."""
        if self._chains is None:
            slots = self.scratch + 1
            level = torch.zeros(slots, dtype=torch.float32, device=self._device)
            self._chains = Chains(self._pool(slots, SAMPLE), self._pool(slots, SAMPLE), level)
        return self._chains

    def _pool(self, rows: int, register: str) -> Tensor:
        return torch.zeros(rows, self.elements[register], dtype=torch.float32, device=self._device)
