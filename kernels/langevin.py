# ruff: noqa: SIM102  (the outer condition is settled when the kernel is compiled, the inner one when it runs)
"""The fused Langevin update (SPEC 7): gradient step, drift to an anchor, noise, displacement clip, box, in one launch.

Rows of different chains, step sizes and temperatures share the launch; the norm of each row's gradient falls out of
it. `kernels.reference.langevin_step` is its twin.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import normal, place
from .launch import Noise, check_flat, check_like, check_pools, check_rows, layout, network_rows, noise_arguments
from .reference import LANGEVIN_COLUMNS

WHOLE_ROW = 16384
"""Up to so many elements one program holds a row in its registers, so that its norm costs no second reading."""
BLOCK = 2048


@triton.jit
def _square_sum(gradient):  # type: ignore[no-untyped-def]
    """In float64: the squares of a steep energy's gradient do not fit into float32."""
    wide = gradient.to(tl.float64)
    return tl.sum(wide * wide)


@triton.jit
def _norm_kernel(gradient, sums, elements, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sum of squares of each block of each row; in memory order, which a sum does not mind."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    element = block * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(gradient + row * elements + element, mask=element < elements, other=0.0)
    tl.store(sums + row * tl.num_programs(1) + block, _square_sum(values))


@triton.jit
def _langevin_kernel(  # type: ignore[no-untyped-def]
    state,
    slots,
    gradient,
    coefficients,
    anchor,
    noise,
    seeds,
    samples,
    draws,
    network_input,
    sums,
    norms,
    nonfinite,
    elements,
    channels,
    blocks,
    ANCHORED: tl.constexpr,
    NOISE: tl.constexpr,
    NORM: tl.constexpr,
    WRITES_INPUT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """NORM: "row" where a program has the whole row, "given" where `sums` holds its blocks' sums of squares already,
    "later" where nobody clips, so that each program leaves its own there."""
    row = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1) * BLOCK
    element = start + tl.arange(0, BLOCK)
    inside = element < elements
    at_network = row * elements + place(element, elements, channels, CHANNELS_LAST)
    slot = tl.load(slots + row)
    at_pool = slot * elements + element

    column = coefficients + row * 7
    of_state, of_anchor, of_gradient = tl.load(column), tl.load(column + 1), tl.load(column + 2)
    of_noise, limit = tl.load(column + 3), tl.load(column + 4)
    low, high = tl.load(column + 5), tl.load(column + 6)

    g = tl.load(gradient + at_network, mask=inside, other=0.0).to(tl.float32)
    step = of_gradient
    if NORM == "later":
        tl.store(sums + row * blocks + tl.program_id(1), _square_sum(g))
    else:
        if NORM == "row":
            total = _square_sum(g)
        else:
            block = tl.arange(0, BLOCKS)
            total = tl.sum(tl.load(sums + row * blocks + block, mask=block < blocks, other=0.0))
        norm = tl.sqrt(total).to(tl.float32)
        if tl.program_id(1) == 0:
            tl.store(norms + row, norm)
        length = tl.abs(of_gradient) * norm
        if length > limit:
            step = of_gradient * (limit / length)
    x = tl.load(state + at_pool, mask=inside, other=0.0)
    new = of_state * x + step * g
    if ANCHORED:
        if of_anchor != 0.0:
            new += of_anchor * tl.load(anchor + at_pool, mask=inside, other=0.0)
    if NOISE == 1:
        new += of_noise * tl.load(noise + row * elements + element, mask=inside, other=0.0)
    if NOISE == 2:
        if of_noise != 0.0:
            new += of_noise * normal(tl.load(seeds + row), tl.load(samples + row), tl.load(draws + row), start, BLOCK)
    # Not a minimum and a maximum: those would turn NaN into a number.
    new = tl.where(new < low, low, tl.where(new > high, high, new))
    tl.store(state + at_pool, new, mask=inside)
    if WRITES_INPUT:
        tl.store(network_input + at_network, new, mask=inside)
    # x - x is 0 for finite x alone. All who find something else write the same 1.
    if tl.sum((tl.where(inside, new - new, 0.0) != 0.0).to(tl.int32)) > 0:
        tl.store(nonfinite + row, 1)


def langevin_step(
    state: Tensor,
    slots: Tensor,
    gradient: Tensor,
    coefficients: Tensor,
    *,
    anchor: Tensor | None = None,
    noise: Tensor | Noise | None = None,
    clips: bool = True,
    network_input: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One Langevin update of several rows, in place on the pool; see `models.program.LangevinUpdate`.

    state, anchor: pools `(capacity, elements)` float32. slots: `(rows,)` int64, distinct.
    gradient: of the energy, `(rows, channels, *positions)` or `(rows, elements)`, float32, bfloat16 or float16,
    contiguous or channels-last. coefficients: `(rows, 7)` float32.
    noise: `(rows, elements)` float32, or the keys to make it from.
    clips: whether any row bounds its displacement. Without it rows above `WHOLE_ROW` elements are read once, not twice.
    network_input: like `gradient`, written where given: the new states in the network's type and layout.

    Returns the norms of the gradients, float32 `(rows,)`, and int32 `(rows,)`: 1 where a new state is not finite.

    Raises:
        ValueError: a shape or a type does not fit; names the argument.
    """
    rows, elements = network_rows("gradient", gradient)
    check_pools(elements, state=state, anchor=anchor)
    check_rows(rows, slots, coefficients, LANGEVIN_COLUMNS)
    check_flat(rows, elements, noise=noise if isinstance(noise, Tensor) else None)
    channels, channels_last = layout(gradient)
    check_like("network_input", network_input, gradient)
    block = BLOCK if elements > WHOLE_ROW else max(4, triton.next_power_of_2(elements))
    blocks = triton.cdiv(elements, block)
    how = "row" if blocks == 1 else "given" if clips else "later"
    sums = torch.empty(rows, blocks, dtype=torch.float64, device=state.device)
    norms = torch.empty(rows, dtype=torch.float32, device=state.device)
    nonfinite = torch.zeros(rows, dtype=torch.int32, device=state.device)
    if how == "given":
        _norm_kernel[(rows, blocks)](gradient, sums, elements, BLOCK=block)
    mode, given, seeds, samples, draws = noise_arguments(noise, state, slots)
    _langevin_kernel[(rows, blocks)](
        state,
        slots,
        gradient,
        coefficients,
        state if anchor is None else anchor,
        given,
        seeds,
        samples,
        draws,
        state if network_input is None else network_input,
        sums,
        norms,
        nonfinite,
        elements,
        channels,
        blocks,
        ANCHORED=anchor is not None,
        NOISE=mode,
        NORM=how,
        WRITES_INPUT=network_input is not None,
        CHANNELS_LAST=channels_last,
        BLOCKS=triton.next_power_of_2(blocks),
        BLOCK=block,
        num_warps=max(1, min(16, block // 512)),
    )
    if how == "later":
        norms = sums.sum(1).sqrt().float()
    return norms, nonfinite
