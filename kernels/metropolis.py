# ruff: noqa: SIM102  (the outer condition is settled when the kernel is compiled, the inner one when it runs)
"""The fused Metropolis-adjusted Langevin step (MALA, SPEC 7): judge each chain's proposal, and make the next one.

Two launches: what decides is a sum over the whole row. Rows that are no such chains cost neither of them more than a
look at their coefficients, so that a step of any chains can have it. `kernels.reference.metropolis_step` is its twin.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import normal, tile
from .launch import (
    Noise,
    check_flat,
    check_keys,
    check_pools,
    check_rows,
    network_rows,
    noise_arguments,
    tiling,
)
from .reference import METROPOLIS_COLUMNS

BLOCK = 2048
SUMS = 5
"""What is added up of a row: the squares of the moves forth and back, of the gradients at the place and the proposal,
and how many elements of the proposal are outside of the box."""

_SUMS: tl.constexpr = tl.constexpr(SUMS)
_ROOT_HALF: tl.constexpr = tl.constexpr(0.7071067811865476)


@triton.jit
def _sums_kernel(  # type: ignore[no-untyped-def]
    state,
    slots,
    gradient,
    coefficients,
    chain_places,
    chain_slopes,
    chain_levels,
    sums,
    levels,
    elements,
    positions,
    CHANNELS: tl.constexpr,
    LAYOUT: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    column = coefficients + row * 6
    judged_beta, judged_step = tl.load(column), tl.load(column + 1)
    if (judged_step != 0.0) | (tl.load(column + 3) != 0.0):
        element, inside, place, _ = tile(elements, positions, CHANNELS, LAYOUT, TILE, BLOCK)
        slot = tl.load(slots + row)
        in_pool = slot * elements
        low, high = tl.load(column + 4), tl.load(column + 5)
        proposal = tl.load(state + in_pool + element, mask=inside, other=0.0)
        x = tl.load(chain_places + in_pool + element, mask=inside, other=0.0)
        slope = tl.load(chain_slopes + in_pool + element, mask=inside, other=0.0).to(tl.float64)
        # Both are read once more right after: kept in the cache before all else.
        at = gradient + row * elements + place
        g = tl.load(at, mask=inside, other=0.0, eviction_policy="evict_last").to(tl.float32).to(tl.float64)
        # In float64, as the difference of two large squares decides.
        drift = (judged_step * judged_beta).to(tl.float64)
        difference = (proposal - x).to(tl.float64)
        forth, back = difference + drift * slope, drift * g - difference
        outside = inside & ((proposal >= low) & (proposal <= high) == 0)
        own = sums + (row * tl.num_programs(0) + tl.program_id(0)) * _SUMS
        tl.store(own, tl.sum(forth * forth))
        tl.store(own + 1, tl.sum(back * back))
        tl.store(own + 2, tl.sum(slope * slope))
        tl.store(own + 3, tl.sum(g * g))
        tl.store(own + 4, tl.sum(outside.to(tl.float64)))
        if tl.program_id(0) == 0:
            # Of the place: the programs of the next launch read it while the first of them writes the pool.
            tl.store(levels + row, tl.load(chain_levels + slot))


@triton.jit
def _propose_kernel(  # type: ignore[no-untyped-def]
    state,
    slots,
    energy,
    gradient,
    coefficients,
    chain_places,
    chain_slopes,
    chain_levels,
    decision,
    decision_seeds,
    decision_samples,
    decision_draws,
    noise,
    seeds,
    samples,
    draws,
    sums,
    levels,
    energies,
    norms,
    nonfinite,
    elements,
    positions,
    blocks,
    DECISION: tl.constexpr,
    NOISE: tl.constexpr,
    BLOCKS: tl.constexpr,
    CHANNELS: tl.constexpr,
    LAYOUT: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    column = coefficients + row * 6
    judged_beta, judged_step = tl.load(column), tl.load(column + 1)
    beta, step = tl.load(column + 2), tl.load(column + 3)
    if (judged_step != 0.0) | (step != 0.0):
        element, inside, place, block = tile(elements, positions, CHANNELS, LAYOUT, TILE, BLOCK)
        slot = tl.load(slots + row)
        in_pool = slot * elements
        each = tl.arange(0, BLOCKS)
        own, there = sums + (row * blocks + each) * _SUMS, each < blocks
        forth = tl.sum(tl.load(own, mask=there, other=0.0))
        back = tl.sum(tl.load(own + 1, mask=there, other=0.0))
        outside = tl.sum(tl.load(own + 4, mask=there, other=0.0))
        before, after = tl.load(levels + row), tl.load(energy + row).to(tl.float32)

        start = judged_step == 0.0
        a = tl.where(start, 1.0, judged_step).to(tl.float64)
        log_ratio = (forth - back) / (4.0 * a) - judged_beta.to(tl.float64) * (after - before).to(tl.float64)
        if DECISION == 1:
            gaussian = tl.load(decision + row)
        else:
            first = tl.arange(0, 1)
            keyed = tl.load(decision_seeds + row), tl.load(decision_samples + row), tl.load(decision_draws + row)
            gaussian = tl.sum(tl.where(tl.arange(0, 4) == 0, normal(keyed[0], keyed[1], keyed[2], first), 0.0))
        # A Gaussian's distribution function makes a uniform number of it.
        uniform = 0.5 * (1.0 + tl.erf(gaussian.to(tl.float64) * _ROOT_HALF))
        taken = start | ((outside == 0.0) & (tl.log(uniform) < log_ratio))

        x = tl.load(chain_places + in_pool + element, mask=inside, other=0.0)
        g = tl.load(chain_slopes + in_pool + element, mask=inside, other=0.0)
        if taken:
            x = tl.load(state + in_pool + element, mask=inside, other=0.0)
            g = tl.load(gradient + row * elements + place, mask=inside, other=0.0).to(tl.float32)
            tl.store(chain_places + in_pool + element, x, mask=inside)
            tl.store(chain_slopes + in_pool + element, g, mask=inside)
        new = x - step * beta * g
        if NOISE == 1:
            if step != 0.0:
                new += tl.sqrt(2.0 * step) * tl.load(noise + row * elements + element, mask=inside, other=0.0)
        if NOISE == 2:
            if step != 0.0:
                drawn = normal(tl.load(seeds + row), tl.load(samples + row), tl.load(draws + row), block)
                new += tl.sqrt(2.0 * step) * drawn
        tl.store(state + in_pool + element, new, mask=inside)
        if tl.program_id(0) == 0:
            level = tl.where(taken, after, before)
            tl.store(chain_levels + slot, level)
            tl.store(energies + row, level)
            squares = tl.sum(tl.load(own + 2 + tl.where(taken, 1, 0), mask=there, other=0.0))
            tl.store(norms + row, tl.sqrt(squares).to(tl.float32))
        # x - x is 0 for finite x alone. All who find something else write the same 1.
        if tl.max((tl.where(inside, x - x, 0.0) != 0.0).to(tl.int32)) > 0:
            tl.store(nonfinite + row, 1)


def metropolis_step(
    state: Tensor,
    slots: Tensor,
    energy: Tensor,
    gradient: Tensor,
    coefficients: Tensor,
    *,
    place: Tensor,
    slope: Tensor,
    level: Tensor,
    decision: Tensor | Noise,
    noise: Tensor | Noise | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of several chains, in place on the pools; see `models.program.MetropolisUpdate`.

    The proposal in `state` is judged, which moves place x, slope (its gradient) and level (its energy) or leaves them,
    and the next one is made: `state <- x - step beta slope + sqrt(2 step) n`.

    state, place, slope: pools `(capacity, elements)` float32. level: pool `(capacity,)` float32. slots: `(rows,)`
    int64, distinct among the rows that are chains: the others, whose judged and next step are both 0, are left alone.
    energy: `(rows or more,)`, and gradient: `(rows or more, channels, *positions)` or `(rows or more, elements)`, at
    the proposals; float32, bfloat16 or float16, gradient contiguous or channels-last.
    coefficients: `(rows, 6)` float32. decision: `(rows,)` standard Gaussians, or the keys whose first number they are.
    noise: `(rows, elements)` float32, or the keys to make it from.

    Returns the energies at the places and the norms of the gradients there, float32 `(rows,)`, and int32 `(rows,)`: 1
    where a place is not finite; 0 for rows that are no chains.

    Raises:
        ValueError: a shape or a type does not fit; names the argument.
    """
    rows = check_rows(slots, coefficients, METROPOLIS_COLUMNS)
    have, elements = network_rows("gradient", gradient)
    if have < rows:
        raise ValueError(f"gradient has {have} rows, expected {rows} or more")
    if energy.dim() != 1 or len(energy) < rows or not energy.is_contiguous():
        raise ValueError(f"energy is {energy.dtype} {tuple(energy.shape)}, expected contiguous ({rows} or more,)")
    check_pools(elements, state=state, place=place, slope=slope)
    check_keys(len(state), torch.float32, level=level)
    check_flat(rows, elements, noise=noise if isinstance(noise, Tensor) else None)
    if isinstance(decision, Tensor):
        check_keys(rows, torch.float32, decision=decision)
    cut = tiling(gradient, elements, BLOCK)
    sums = torch.empty(rows, cut.programs, SUMS, dtype=torch.float64, device=state.device)
    levels, energies, norms = (torch.zeros(rows, dtype=torch.float32, device=state.device) for _ in range(3))
    nonfinite = torch.zeros(rows, dtype=torch.int32, device=state.device)
    decides, *decided = noise_arguments(decision, state, slots, name="decision")
    mode, *drawn = noise_arguments(noise, state, slots)
    grid = cut.programs, rows
    _sums_kernel[grid](
        state,
        slots,
        gradient,
        coefficients,
        place,
        slope,
        level,
        sums,
        levels,
        elements,
        cut.positions,
        **cut.constants,
        num_warps=cut.warps,
    )
    _propose_kernel[grid](
        state,
        slots,
        energy,
        gradient,
        coefficients,
        place,
        slope,
        level,
        *decided,
        *drawn,
        sums,
        levels,
        energies,
        norms,
        nonfinite,
        elements,
        cut.positions,
        cut.programs,
        DECISION=decides,
        NOISE=mode,
        BLOCKS=triton.next_power_of_2(cut.programs),
        **cut.constants,
        num_warps=cut.warps,
    )
    return energies, norms, nonfinite
