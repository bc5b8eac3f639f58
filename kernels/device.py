"""Triton device functions that the fused kernels share: Gaussian noise, and tensors in a network's memory layout."""

from __future__ import annotations

import triton
import triton.language as tl

# float32 of 2^-32 and 2 pi 2^-32.
_WORD: tl.constexpr = tl.constexpr(2.3283064365386963e-10)
_TURN: tl.constexpr = tl.constexpr(1.4629180792671596e-09)


@triton.jit
def words(seed, sample, draw, block):  # type: ignore[no-untyped-def]
    """The four words of each Philox block, uint32 shaped as `block` each.

    The layout of key and counter is that of `kernels.philox`. block: int32, an element's number over 4.
    """
    zero = block * 0
    return tl.philox(seed, block, zero + draw.to(tl.int32), zero + sample.to(tl.int32), zero)


@triton.jit
def normal(seed, sample, draw, block):  # type: ignore[no-untyped-def]
    """Standard normals of the four elements of each Philox block of one row, those of `kernels.philox.normal`.

    seed, sample, draw: scalars, int64. block: `(..., n)`. Returns float32 `(..., 4 n)`.
    The words are the same; Box-Muller in float32 differs from that in float64 by a few roundings.
    """
    first, second, third, fourth = words(seed, sample, draw, block)
    cos_a, sin_a = box_muller(first, second)
    cos_b, sin_b = box_muller(third, fourth)
    # The four values of a block side by side, as they lie in memory: cos_a, sin_a, cos_b, sin_b.
    return tl.interleave(tl.interleave(cos_a, cos_b), tl.interleave(sin_a, sin_b))


@triton.jit
def box_muller(radius_word, angle_word):  # type: ignore[no-untyped-def]
    """Two independent standard normals of two words, with uniforms `(word + 1/2) / 2^32`."""
    uniform = (radius_word.to(tl.float32) + 0.5) * _WORD
    # float32 cannot tell words near 2^32 apart; their complement v it can. With w the rounded 1 - v, Kahan's correction
    # gives log(1 - v) as log(w) v / (1 - w).
    complement = ((radius_word ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * _WORD
    rest = 1.0 - complement
    gap = 1.0 - rest
    log = tl.log(tl.where(uniform < 0.5, uniform, rest))
    corrected = tl.where(gap == 0.0, -complement, log * complement / tl.where(gap == 0.0, 1.0, gap))
    log = tl.where(uniform < 0.5, log, corrected)
    radius = tl.sqrt(-2.0 * log)
    angle = (angle_word.to(tl.float32) + 0.5) * _TURN
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit
def tile(elements, positions, CHANNELS: tl.constexpr, LAYOUT: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The elements of a row that this program (its place on axis 0) works on; see `kernels.launch.Tiling`.

    Returns their numbers in the logical order (channel, position), in which pools and noise are kept; which of them
    there are; their places in a row of a network's tensor; and the Philox blocks that their noise is made from.
    """
    program = tl.program_id(0)
    if LAYOUT == "tiled":
        # Channels by positions: pools are read along the positions, the network's tensor along the channels, and
        # either of them without gaps.
        WIDTH: tl.constexpr = BLOCK // TILE
        across = tl.cdiv(positions, WIDTH)
        first = program % across * WIDTH
        channel = (program // across * TILE + tl.arange(0, TILE))[:, None]
        position = (first + tl.arange(0, WIDTH))[None, :]
        element = channel * positions + position
        inside = (channel < CHANNELS) & (position < positions)
        place = position * CHANNELS + channel
        block = channel * (positions // 4) + (first // 4 + tl.arange(0, WIDTH // 4))[None, :]
    else:
        element = program * BLOCK + tl.arange(0, BLOCK)
        inside = element < elements
        place = element
        if LAYOUT == "strided":
            place = element % positions * CHANNELS + element // positions
        block = program * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    return element, inside, place, block
