"""Triton device functions that the fused kernels share: Gaussian noise, and tensors in a network's memory layout."""

from __future__ import annotations

import triton
import triton.language as tl

from .philox import MULTIPLIERS, ROUNDS, WEYL

# float32 of 2^-32 and 2 pi 2^-32.
_WORD: tl.constexpr = tl.constexpr(2.3283064365386963e-10)
_TURN: tl.constexpr = tl.constexpr(1.4629180792671596e-09)
_ROUNDS: tl.constexpr = tl.constexpr(ROUNDS)
_MULTIPLIER_0: tl.constexpr = tl.constexpr(MULTIPLIERS[0])
_MULTIPLIER_1: tl.constexpr = tl.constexpr(MULTIPLIERS[1])
_WEYL_0: tl.constexpr = tl.constexpr(WEYL[0])
_WEYL_1: tl.constexpr = tl.constexpr(WEYL[1])
# Bits of sqrt(1/2).
_ROOT_HALF: tl.constexpr = tl.constexpr(0x3F3504F3)


@triton.jit
def words(seed, sample, draw, block):  # type: ignore[no-untyped-def]
    """The four words of each Philox block, uint32 shaped as `block` each.

    The layout of key and counter is that of `kernels.philox`. block: an element's number over 4.
    Not Triton's own `tl.philox`, which takes two multiplications for the halves of one product, the slower of them at
    a quarter of the rate. And what is the same for the whole row stays a scalar for the first rounds.
    """
    c0, c1, c2, c3 = block.to(tl.uint32), draw.to(tl.uint32), sample.to(tl.uint32), (sample * 0).to(tl.uint32)
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(_ROUNDS):
        first, second = c0.to(tl.uint64) * _MULTIPLIER_0, c2.to(tl.uint64) * _MULTIPLIER_1
        c0, c1 = (second >> 32).to(tl.uint32) ^ c1 ^ k0, second.to(tl.uint32)
        c2, c3 = (first >> 32).to(tl.uint32) ^ c3 ^ k1, first.to(tl.uint32)
        k0, k1 = k0 + _WEYL_0, k1 + _WEYL_1
    return c0, c1, c2, c3


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
    """Two independent standard normals of two words, with uniforms `(word + 1/2) / 2^32`.

    Logarithm, sine and cosine are polynomials (Cephes, Moshier 1989: logf, sinf, cosf): a kernel has some hundred
    instructions an element for as long as its bytes take, and the library's functions, whose way out for large
    arguments is not needed here, would take that up by themselves and spill.
    """
    radius = tl.sqrt(-2.0 * _log_of_uniform(radius_word))
    # The quarter of the turn in integers, so that the rest, within an eighth of a turn from 0, is exact.
    quarter = (angle_word + 0x20000000) >> 30
    rest = (angle_word - (quarter << 30)).to(tl.int32, bitcast=True)
    x = (rest.to(tl.float32) + 0.5) * _TURN
    z = x * x
    sine = ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1) * z * x + x
    cosine = ((2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z + (1.0 - 0.5 * z)
    odd = (quarter & 1) != 0
    first = tl.where(odd, sine, cosine) * radius
    second = tl.where(odd, cosine, sine) * radius
    # The cosine is negative in quarters 1 and 2, the sine in 2 and 3.
    first = first.to(tl.uint32, bitcast=True) ^ (((quarter + 1) & 2) << 30)
    second = second.to(tl.uint32, bitcast=True) ^ ((quarter & 2) << 30)
    return first.to(tl.float32, bitcast=True), second.to(tl.float32, bitcast=True)


@triton.jit
def _log_of_uniform(word):  # type: ignore[no-untyped-def]
    """The logarithm of `(word + 1/2) / 2^32`."""
    bits = ((word.to(tl.float32) + 0.5) * _WORD).to(tl.int32, bitcast=True)
    # u = 2^power m, m in [sqrt(1/2), sqrt(2)); the shift of a negative number rounds down.
    power = (bits - _ROOT_HALF) >> 23
    t = (bits - (power << 23)).to(tl.float32, bitcast=True) - 1.0
    # Near 1 float32 cannot tell the words apart, but what is missing to 1 it can.
    missing = ((word ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * _WORD
    t = tl.where(power == 0, -missing, t)
    z = t * t
    y = ((7.0376836292e-2 * t - 1.1514610310e-1) * t + 1.1676998740e-1) * t - 1.2420140846e-1
    y = ((y * t + 1.4249322787e-1) * t - 1.6668057665e-1) * t + 2.0000714765e-1
    y = (y * t - 2.4999993993e-1) * t + 3.3333331174e-1
    of_two = power.to(tl.float32)
    return (y * t * z - 2.12194440e-4 * of_two - 0.5 * z) + t + 0.693359375 * of_two


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
