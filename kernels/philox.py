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
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)

_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIERS = np.array(MULTIPLIERS, dtype=np.uint64)
# Additions to the key before each round, (rounds, 2, 1).
_KEY_STEPS = (np.arange(ROUNDS, dtype=np.uint64)[:, None] * np.array(WEYL, dtype=np.uint64))[:, :, None]
_WORD = 0xFFFFFFFF
_FEW_BLOCKS = 64
"""Up to here Python's integers are faster than NumPy's arrays; measured, for 16 blocks by a factor of two."""
_CHUNK = 4096
"""Counters that are worked on at a time: all that a round touches stays in the nearest caches."""

Words = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float32]


def philox4x32(counter: Words, key: Words) -> Words:
    """Ten rounds of Philox 4x32.

    counter: (4, ...) and key: (2, ...), uint64 arrays that hold 32-bit words; their trailing
    shapes broadcast. Returns the four output words, (4, ...).
    """
    shape = np.broadcast_shapes(counter.shape[1:], key.shape[1:])
    counters = np.broadcast_to(counter, (4, *shape)).reshape(4, -1)
    return _words(counters, np.broadcast_to(key, (2, *shape)).reshape(2, -1)).reshape(4, *shape)


def _words(counter: Words, key: Words) -> Words:
    """Ten rounds of Philox 4x32. counter: (4, n) and key: (2, n). Returns (4, n)."""
    words = np.empty(counter.shape, dtype=np.uint64)
    for first in range(0, counter.shape[1], _CHUNK):
        part = slice(first, first + _CHUNK)
        _rounds(counter[:, part], key[:, part], words[:, part])
    return words


def _words_of_row(seed: int, sample: int, draw: int, blocks: int) -> bytes:
    """The words of the counters (block, draw, sample, 0) under one key, as `<u8` (4, blocks).

    An integer of Python's holds one word of all blocks, in lanes of 64 bits: a product with 32 bits stays in its lane,
    and one operation on a few hundred bytes takes a fraction of what one of NumPy's takes.
    """
    lanes = _lanes(blocks)
    ones, low = lanes.ones, lanes.ones * _WORD
    c0, c1, c2, c3 = lanes.numbers, draw * ones, sample * ones, 0
    k0, k1 = seed & _WORD, seed >> 32
    for _ in range(ROUNDS):
        p0, p2 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1 = (p2 >> 32 & low) ^ c1 ^ k0 * ones, p2 & low
        c2, c3 = (p0 >> 32 & low) ^ c3 ^ k1 * ones, p0 & low
        k0, k1 = k0 + WEYL[0] & _WORD, k1 + WEYL[1] & _WORD
    return b"".join([word.to_bytes(8 * blocks, "little") for word in (c0, c1, c2, c3)])


class _Lanes(NamedTuple):
    """ones: 1 in every lane. numbers: 0, 1, 2.. in them."""

    ones: int
    numbers: int


@lru_cache(maxsize=_FEW_BLOCKS)
def _lanes(count: int) -> _Lanes:
    ones, numbers = (np.asarray(lane, dtype="<u8").tobytes() for lane in ([1] * count, range(count)))
    return _Lanes(int.from_bytes(ones, "little"), int.from_bytes(numbers, "little"))


def _rounds(counter: Words, key: Words, out: Words) -> None:
    """counter, out: (4, n). key: (2, n).

    For the few hundred words of a small image the time goes into the number of array operations, and one between two
    contiguous arrays of one shape takes half as long as any other. So the two multiplications of a round are one, of
    (c0, c2), nothing is allocated in a round, and the products (p0, p2) are followed by another p0: their crossing,
    (p2, p0), is then a plain slice.
    """
    n = counter.shape[1]
    keys = ((key + _KEY_STEPS) & _MASK).reshape(ROUNDS, 2 * n)
    multipliers = np.repeat(_MULTIPLIERS, n)
    even, odd = counter[::2].reshape(2 * n).copy(), counter[1::2].reshape(2 * n).copy()
    products = np.empty(3 * n, dtype=np.uint64)
    straight, crossed = products[: 2 * n], products[n:]
    head, tail = products[:n], products[2 * n :]
    for round_key in keys:
        np.multiply(multipliers, even, out=straight)
        tail[...] = head
        np.right_shift(crossed, _SHIFT, out=even)
        np.bitwise_xor(even, odd, out=even)
        np.bitwise_xor(even, round_key, out=even)
        np.bitwise_and(crossed, _MASK, out=odd)
    out[::2], out[1::2] = even.reshape(2, n), odd.reshape(2, n)


def _words_of_rows(seeds: Sequence[int], samples: Sequence[int], draws: Sequence[int], blocks: int) -> Words:
    """As `_words_of_row`, (4, rows, blocks) for several rows."""
    rows = len(seeds)
    counter = np.zeros((4, rows, blocks), dtype=np.uint64)
    key = np.empty((2, rows, blocks), dtype=np.uint64)
    seed = np.array(seeds, dtype=np.uint64)
    counter[0] = np.arange(blocks)
    counter[1].T[...] = draws
    counter[2].T[...] = samples
    key[0].T[...] = seed & _MASK
    key[1].T[...] = seed >> _SHIFT
    return _words(counter.reshape(4, -1), key.reshape(2, -1)).reshape(4, rows, blocks)


def normal(seeds: Sequence[int], samples: Sequence[int], draws: Sequence[int], elements: int) -> Floats:
    """Standard normal noise for several rows.

    seeds: one per row, 0..2^64-1. samples, draws: one per row, 0..2^32-1. elements: values per row.
    Returns float32 `(rows, elements)`; a row depends on its own (seed, sample, draw) alone.

    The uniforms are `(word + 1/2) / 2^32`, so that the logarithm is finite; they are formed in
    float64, because float32 cannot tell the words near 2^32 apart. Largest magnitude: 6.66.
    """
    rows = len(seeds)
    blocks = (elements + 3) // 4
    if rows * blocks <= _FEW_BLOCKS:
        keys = zip(seeds, samples, draws, strict=True)
        row_words = [_words_of_row(int(seed), int(sample), int(draw), blocks) for seed, sample, draw in keys]
        words = np.frombuffer(b"".join(row_words), dtype="<u8").reshape(rows, 4, blocks).transpose(1, 0, 2)
    else:
        words = _words_of_rows(seeds, samples, draws, blocks)
    uniform = words + 0.5
    uniform *= 2.0**-32
    radius, angle = uniform[::2], uniform[1::2]
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    angle *= 2.0 * np.pi
    out = np.empty((rows, blocks, 2, 2), dtype=np.float32)
    out[..., 0] = (radius * np.cos(angle)).transpose(1, 2, 0)
    out[..., 1] = (radius * np.sin(angle)).transpose(1, 2, 0)
    return out.reshape(rows, blocks * 4)[:, :elements]
