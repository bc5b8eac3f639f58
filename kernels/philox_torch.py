"""The noise of `kernels.philox` made by torch, on any device; for eager baselines, and where no kernel runs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .philox import MULTIPLIERS, ROUNDS, WEYL

_MASK = 0xFFFFFFFF


def philox4x32(counter: Tensor, key: Tensor) -> Tensor:
    """Ten rounds of Philox 4x32.

    counter: (4, ...) and key: (2, ...), int64 tensors that hold 32-bit words; their trailing shapes broadcast.
    Returns the four output words, (4, ...).
    """
    c0, c1, c2, c3 = counter.unbind()
    k0, k1 = key.unbind()
    for _ in range(ROUNDS):
        # int64 has no room for the sign of these products, but the bits are those of an unsigned product.
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = _high(second) ^ c1 ^ k0, second & _MASK, _high(first) ^ c3 ^ k1, first & _MASK
        k0, k1 = (k0 + WEYL[0]) & _MASK, (k1 + WEYL[1]) & _MASK
    return torch.stack(torch.broadcast_tensors(c0, c1, c2, c3))


def _high(product: Tensor) -> Tensor:
    return (product >> 32) & _MASK


def normal(seeds: Tensor, samples: Tensor, draws: Tensor, elements: int) -> Tensor:
    """Standard normal noise for several rows, as `kernels.philox.normal`.

    seeds, samples, draws: int64 `(rows,)`; a seed is the bits of an unsigned 64-bit number.
    Returns float32 `(rows, elements)`.
    """
    rows, blocks = len(seeds), (elements + 3) // 4
    zero = torch.zeros(rows, blocks, dtype=torch.int64, device=seeds.device)
    block = zero + torch.arange(blocks, device=seeds.device)
    counter = torch.stack((block, zero + draws[:, None], zero + samples[:, None], zero))
    key = torch.stack((seeds & _MASK, _high(seeds)))[:, :, None]
    uniform = (philox4x32(counter, key).double() + 0.5) * 2.0**-32
    radius = torch.sqrt(-2.0 * torch.log(uniform[::2]))
    angle = uniform[1::2] * (2.0 * math.pi)
    pairs = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)  # (pair, rows, blocks, 2)
    return pairs.permute(1, 2, 0, 3).reshape(rows, blocks * 4)[:, :elements].float().contiguous()
