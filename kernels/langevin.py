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

from .device import normal, tile
from .launch import (
    PER_WARP,
    Noise,
    check_flat,
    check_like,
    check_pools,
    check_rows,
    network_rows,
    noise_arguments,
    tiling,
)
from .reference import LANGEVIN_COLUMNS

WHOLE_ROW = 8192
"""Up to so many elements one program holds a row in its registers, so that its norm costs no second reading; with twice
as many, and noise, the registers of its 512 threads spill."""
BLOCK = 2048


@triton.jit
def _square_sum(gradient):  # type: ignore[no-untyped-def]
    """In float64: the squares of a steep energy's gradient do not fit into float32."""
    wide = gradient.to(tl.float64)
    return tl.sum(wide * wide)


@triton.jit
def _norm_kernel(gradient, sums, elements, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sum of squares of each block of each row; in memory order, which a sum does not mind."""
    row = tl.program_id(1).to(tl.int64)
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    # Read once more right after: kept in the cache before all else.
    values = tl.load(
        gradient + row * elements + element, mask=element < elements, other=0.0, eviction_policy="evict_last"
    )
    tl.store(sums + row * tl.num_programs(0) + tl.program_id(0), _square_sum(values))


@triton.jit
def _root_kernel(sums, norms, blocks, BLOCKS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The norm of each row, of its blocks' sums of squares."""
    row = tl.program_id(0)
    tl.store(norms + row, tl.sqrt(_total(sums + row * blocks, blocks, BLOCKS)).to(tl.float32))


@triton.jit
def _total(sums, blocks, BLOCKS: tl.constexpr):  # type: ignore[no-untyped-def]
    each = tl.arange(0, BLOCKS)
    return tl.sum(tl.load(sums + each, mask=each < blocks, other=0.0))


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
    positions,
    blocks,
    ANCHORED: tl.constexpr,
    NOISE: tl.constexpr,
    NORM: tl.constexpr,
    WRITES_INPUT: tl.constexpr,
    BLOCKS: tl.constexpr,
    CHANNELS: tl.constexpr,
    LAYOUT: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """NORM: "row" where a program has the whole row, "given" where `sums` holds its blocks' sums of squares already,
    "later" where nobody clips, so that each program leaves its own there."""
    row = tl.program_id(1).to(tl.int64)
    if NORM == "given":
        # Backwards: the rows whose sums were made last are in the cache still.
        row = tl.num_programs(1) - 1 - row
    element, inside, place, block = tile(elements, positions, CHANNELS, LAYOUT, TILE, BLOCK)
    in_pool = tl.load(slots + row) * elements

    column = coefficients + row * 7
    of_state, of_anchor, of_gradient = tl.load(column), tl.load(column + 1), tl.load(column + 2)
    of_noise, limit = tl.load(column + 3), tl.load(column + 4)
    low, high = tl.load(column + 5), tl.load(column + 6)

    g = tl.load(gradient + row * elements + place, mask=inside, other=0.0).to(tl.float32)
    step = of_gradient
    if NORM == "later":
        tl.store(sums + row * blocks + tl.program_id(0), _square_sum(g))
    else:
        total = _square_sum(g) if NORM == "row" else _total(sums + row * blocks, blocks, BLOCKS)
        norm = tl.sqrt(total).to(tl.float32)
        if tl.program_id(0) == 0:
            tl.store(norms + row, norm)
        length = tl.abs(of_gradient) * norm
        if length > limit:
            step = of_gradient * (limit / length)
    x = tl.load(state + in_pool + element, mask=inside, other=0.0)
    new = of_state * x + step * g
    if ANCHORED:
        if of_anchor != 0.0:
            new += of_anchor * tl.load(anchor + in_pool + element, mask=inside, other=0.0)
    if NOISE == 1:
        if of_noise != 0.0:
            new += of_noise * tl.load(noise + row * elements + element, mask=inside, other=0.0)
    if NOISE == 2:
        if of_noise != 0.0:
            new += of_noise * normal(tl.load(seeds + row), tl.load(samples + row), tl.load(draws + row), block)
    # Not a minimum and a maximum: those would turn NaN into a number.
    new = tl.where(new < low, low, tl.where(new > high, high, new))
    tl.store(state + in_pool + element, new, mask=inside)
    if WRITES_INPUT:
        tl.store(network_input + row * elements + place, new, mask=inside)
    # x - x is 0 for finite x alone. All who find something else write the same 1.
    if tl.max((tl.where(inside, new - new, 0.0) != 0.0).to(tl.int32)) > 0:
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

    state, anchor: pools `(capacity, elements)` float32. slots: `(rows,)` int64, distinct among the rows that
    matter: those that pad a batch to the size of a CUDA graph may share one scratch slot, with coefficients 0, and
    what becomes of it is undefined.
    gradient: of the energy, `(rows or more, channels, *positions)` or `(rows or more, elements)`, float32, bfloat16 or
    float16, contiguous or channels-last. coefficients: `(rows, 7)` float32. What a row has coefficient 0 for is not
    read (the gradient is, for its norm).
    noise: `(rows, elements)` float32, or the keys to make it from.
    clips: whether any row bounds its displacement. Without it rows above `WHOLE_ROW` elements are read once, not twice.
    network_input: `(rows or more, ...)` like `gradient`, written where given: the new states in the network's type
    and layout.

    Returns the norms of the gradients, float32 `(rows,)`, and int32 `(rows,)`: 1 where a new state is not finite.

    Raises:
        ValueError: a shape or a type does not fit; names the argument.
    """
    rows = check_rows(slots, coefficients, LANGEVIN_COLUMNS)
    have, elements = network_rows("gradient", gradient)
    if have < rows:
        raise ValueError(f"gradient has {have} rows, expected {rows} or more")
    check_pools(elements, state=state, anchor=anchor)
    check_flat(rows, elements, noise=noise if isinstance(noise, Tensor) else None)
    check_like("network_input", network_input, gradient, rows)
    cut = tiling(gradient, elements, WHOLE_ROW)
    how = "row"
    if cut.programs > 1:
        cut = tiling(gradient, elements, BLOCK)
        how = "given" if clips else "later"
    flat = -(-elements // BLOCK)  # the first reading is in memory order, whatever the layout
    blocks = flat if how == "given" else cut.programs
    sums = torch.empty(rows, blocks, dtype=torch.float64, device=state.device)
    norms = torch.empty(rows, dtype=torch.float32, device=state.device)
    nonfinite = torch.zeros(rows, dtype=torch.int32, device=state.device)
    if how == "given":
        _norm_kernel[(blocks, rows)](gradient, sums, elements, BLOCK=BLOCK, num_warps=max(1, BLOCK // PER_WARP))
    mode, given, seeds, samples, draws = noise_arguments(noise, state, slots)
    _langevin_kernel[(cut.programs, rows)](
        state,
        slots,
        gradient,
        coefficients,
        state if anchor is None else anchor,
        given,
        seeds,
        samples,
        draws,
        gradient if network_input is None else network_input,
        sums,
        norms,
        nonfinite,
        elements,
        cut.positions,
        blocks,
        ANCHORED=anchor is not None,
        NOISE=mode,
        NORM=how,
        WRITES_INPUT=network_input is not None,
        BLOCKS=triton.next_power_of_2(blocks),
        **cut.constants,
        num_warps=cut.warps,
    )
    if how == "later":
        _root_kernel[(rows,)](sums, norms, blocks, BLOCKS=triton.next_power_of_2(blocks), num_warps=1)
    return norms, nonfinite
