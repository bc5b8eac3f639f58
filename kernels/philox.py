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
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)

_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
# Additions to the key before each round, (rounds, 2).
_KEY_STEPS = np.arange(ROUNDS, dtype=np.uint64)[:, None] * np.array(WEYL, dtype=np.uint64)

Words = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float32]


def philox4x32(counter: Words, key: Words) -> Words:
    """Ten rounds of Philox 4x32.

    counter: (4, ...) and key: (2, ...), uint64 arrays that hold 32-bit words; their trailing
    shapes broadcast. Returns the four output words, (4, ...).

    The two multiplications of a round run as one array operation on (c0, c2): for the few hundred
    words of a small image the time goes into the number of operations, not into their size.
    """
    key = (key + _KEY_STEPS.reshape(ROUNDS, 2, *[1] * (key.ndim - 1))) & _MASK
    multipliers = np.array(MULTIPLIERS, dtype=np.uint64).reshape(2, *[1] * (counter.ndim - 1))
    even, odd = counter[::2], counter[1::2]
    for round_ in range(ROUNDS):
        products = (multipliers * even)[::-1]
        even = (products >> _SHIFT) ^ odd ^ key[round_]
        odd = products & _MASK
    return np.stack((even[0], odd[0], even[1], odd[1]))


def normal(seeds: Sequence[int], samples: Sequence[int], draws: Sequence[int], elements: int) -> Floats:
    """Standard normal noise for several rows.

    seeds: one per row, 0..2^64-1. samples, draws: one per row, 0..2^32-1. elements: values per row.
    Returns float32 `(rows, elements)`; a row depends on its own (seed, sample, draw) alone.

    The uniforms are `(word + 1/2) / 2^32`, so that the logarithm is finite; they are formed in
    float64, because float32 cannot tell the words near 2^32 apart. Largest magnitude: 6.66.
    """
    rows = len(seeds)
    blocks = (elements + 3) // 4
    counter = np.zeros((4, rows, blocks), dtype=np.uint64)
    counter[0] = np.arange(blocks, dtype=np.uint64)
    counter[1] = np.array(draws, dtype=np.uint64)[:, None]
    counter[2] = np.array(samples, dtype=np.uint64)[:, None]
    seed = np.array(seeds, dtype=np.uint64)[:, None]
    words = philox4x32(counter, np.stack((seed & _MASK, seed >> _SHIFT)))
    uniform = (words + 0.5) * 2.0**-32
    radius = np.sqrt(-2.0 * np.log(uniform[::2]))
    angle = uniform[1::2] * (2.0 * np.pi)
    out = np.empty((rows, blocks, 2, 2), dtype=np.float32)
    out[..., 0] = (radius * np.cos(angle)).transpose(1, 2, 0)
    out[..., 1] = (radius * np.sin(angle)).transpose(1, 2, 0)
    return out.reshape(rows, blocks * 4)[:, :elements]
