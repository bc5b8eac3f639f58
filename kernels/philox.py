"""Counter-based Gaussian noise: Philox 4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011).

Noise is a pure function of (seed, sample, draw, element) and never of a place in a batch, so a
sample comes out the same alone and in any company (SPEC 0). The layout:

    key     = (seed low 32 bits, seed high 32 bits)
    counter = (block, draw, sample, 0),   block = element // 4

Each block gives four 32-bit words and, by Box-Muller, four standard normals: words (0, 1) give
elements 0 and 1 of the block, words (2, 3) give elements 2 and 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

ROUNDS = 10
MULTIPLIER_0 = np.uint64(0xD2511F53)
MULTIPLIER_1 = np.uint64(0xCD9E8D57)
WEYL_0 = 0x9E3779B9
WEYL_1 = 0xBB67AE85
_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)

Words = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float32]


def philox4x32(
    counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]
) -> tuple[Words, Words, Words, Words]:
    """Ten rounds of Philox 4x32.

    counter, key: uint64 arrays that hold 32-bit words and broadcast against each other.
    Returns four uint64 arrays of 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for round_ in range(ROUNDS):
        if round_:
            k0 = (k0 + np.uint64(WEYL_0)) & _MASK
            k1 = (k1 + np.uint64(WEYL_1)) & _MASK
        product0 = MULTIPLIER_0 * c0
        product1 = MULTIPLIER_1 * c2
        c0 = (product1 >> _SHIFT) ^ c1 ^ k0
        c1 = product1 & _MASK
        c2 = (product0 >> _SHIFT) ^ c3 ^ k1
        c3 = product0 & _MASK
    return c0, c1, c2, c3


def normal(seeds: Sequence[int], samples: Sequence[int], draws: Sequence[int], elements: int) -> Floats:
    """Standard normal noise for several rows.

    seeds: one per row, 0..2^64-1. samples, draws: one per row, 0..2^32-1. elements: values per row.
    Returns float32 `(rows, elements)`; a row depends on its own (seed, sample, draw) alone.

    The uniforms are `(word + 1/2) / 2^32`, so that the logarithm is finite; they are formed in
    float64, because float32 cannot tell the words near 2^32 apart. Largest magnitude: 6.66.
    """
    rows = len(seeds)
    blocks = (elements + 3) // 4
    seed = np.array(seeds, dtype=np.uint64)[:, None]
    zero = np.zeros((1, 1), dtype=np.uint64)
    counter = (
        np.arange(blocks, dtype=np.uint64)[None, :],
        np.array(draws, dtype=np.uint64)[:, None],
        np.array(samples, dtype=np.uint64)[:, None],
        zero,
    )
    words = philox4x32(counter, (seed & _MASK, seed >> _SHIFT))
    out = np.empty((rows, blocks, 4), dtype=np.float32)
    for pair in (0, 2):
        radius = np.sqrt(-2.0 * np.log((words[pair] + 0.5) * 2.0**-32))
        angle = (words[pair + 1] + 0.5) * (2.0 * np.pi * 2.0**-32)
        out[:, :, pair] = radius * np.cos(angle)
        out[:, :, pair + 1] = radius * np.sin(angle)
    return out.reshape(rows, blocks * 4)[:, :elements]
