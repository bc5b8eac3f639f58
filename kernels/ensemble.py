# ruff: noqa: SIM102  (the outer condition is settled when the kernel is compiled, the inner one when it runs)
"""The fused ensemble update (iDDIM eq. 6, 10, 11, 33, 4, 28): one launch takes all rows of a batch one step further.

It reads the network's output once and writes the state, the prediction of the clean image and the network's next
input; rows at different steps, of different samplers and with different seeds share the launch.
`kernels.reference.ensemble_step` is its twin.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import normal, tile
from .launch import (
    History,
    Noise,
    check_flat,
    check_history,
    check_keys,
    check_like,
    check_pools,
    check_prediction,
    check_rows,
    network_rows,
    noise_arguments,
    tiling,
)
from .reference import ENSEMBLE_COLUMNS

BLOCK = 1024


@triton.jit
def _ensemble_kernel(  # type: ignore[no-untyped-def]
    state,
    slots,
    output,
    coefficients,
    anchor,
    null_rows,
    accumulator,
    history_pool,
    history_slots,
    history_weights,
    history_counts,
    history_keep,
    noise,
    seeds,
    samples,
    draws,
    prediction,
    prediction_rows,
    network_input,
    nonfinite,
    elements,
    positions,
    most,
    GUIDED: tl.constexpr,
    ACCUMULATES: tl.constexpr,
    WEIGHTED: tl.constexpr,
    NOISE: tl.constexpr,
    PREDICTION: tl.constexpr,
    WRITES_INPUT: tl.constexpr,
    CHANNELS: tl.constexpr,
    LAYOUT: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """PREDICTION: "none" is kept, "all" are, or "some": those that prediction_rows gives a place."""
    row = tl.program_id(1).to(tl.int64)
    element, inside, place, block = tile(elements, positions, CHANNELS, LAYOUT, TILE, BLOCK)
    slot = tl.load(slots + row)
    in_pool = slot * elements

    column = coefficients + row * 12
    guidance = tl.load(column)
    p_state, p_output = tl.load(column + 1), tl.load(column + 2)
    low, high = tl.load(column + 3), tl.load(column + 4)
    of_state, of_prediction, of_anchor = tl.load(column + 5), tl.load(column + 6), tl.load(column + 7)
    of_accumulator, of_noise = tl.load(column + 8), tl.load(column + 9)

    x = tl.load(state + in_pool + element, mask=inside, other=0.0)
    out = tl.load(output + row * elements + place, mask=inside, other=0.0).to(tl.float32)
    if GUIDED:
        if guidance != 0.0:
            other = tl.load(null_rows + row) * elements
            null = tl.load(output + other + place, mask=inside, other=0.0).to(tl.float32)
            out += guidance * (out - null)
    p = p_state * x + p_output * out
    # Not a minimum and a maximum: those would turn NaN into a number.
    p = tl.where(p < low, low, tl.where(p > high, high, p))
    new = of_state * x + of_prediction * p
    if of_anchor != 0.0:
        new += of_anchor * tl.load(anchor + in_pool + element, mask=inside, other=0.0)
    if ACCUMULATES:
        y_accumulator, y_prediction = tl.load(column + 10), tl.load(column + 11)
        if (of_accumulator != 0.0) | (y_accumulator != 0.0) | (y_prediction != 0.0):
            y = tl.load(accumulator + in_pool + element, mask=inside, other=0.0)
            y = y_accumulator * y + y_prediction * p
            tl.store(accumulator + in_pool + element, y, mask=inside)
            new += of_accumulator * y
    if NOISE == 1:
        if of_noise != 0.0:
            new += of_noise * tl.load(noise + row * elements + element, mask=inside, other=0.0)
    if NOISE == 2:
        if of_noise != 0.0:
            new += of_noise * normal(tl.load(seeds + row), tl.load(samples + row), tl.load(draws + row), block)
    if WEIGHTED:
        count = tl.load(history_counts + row)
        if count > 0:
            total = tl.zeros_like(p)
            index = count * 0
            while index < count:
                before = tl.load(history_slots + row * most + index) * elements
                weight = tl.load(history_weights + row * most + index)
                total += weight * tl.load(history_pool + before + element, mask=inside, other=0.0)
                index += 1
            new += total
        keep = tl.load(history_keep + row)
        if keep >= 0:
            tl.store(history_pool + keep * elements + element, p, mask=inside)
    tl.store(state + in_pool + element, new, mask=inside)
    if PREDICTION == "all":
        tl.store(prediction + row * elements + element, p, mask=inside)
    if PREDICTION == "some":
        kept_at = tl.load(prediction_rows + row)
        if kept_at >= 0:
            tl.store(prediction + kept_at * elements + element, p, mask=inside)
    if WRITES_INPUT:
        tl.store(network_input + row * elements + place, new, mask=inside)
    # x - x is 0 for finite x alone. All who find something else write the same 1.
    if tl.max((tl.where(inside, new - new, 0.0) != 0.0).to(tl.int32)) > 0:
        tl.store(nonfinite + row, 1)


def ensemble_step(
    state: Tensor,
    slots: Tensor,
    output: Tensor,
    coefficients: Tensor,
    *,
    anchor: Tensor,
    null_rows: Tensor | None = None,
    accumulator: Tensor | None = None,
    history: History | None = None,
    noise: Tensor | Noise | None = None,
    prediction: Tensor | None = None,
    prediction_rows: Tensor | None = None,
    network_input: Tensor | None = None,
) -> Tensor:
    """One ensemble update of several rows, in place on the pools; see `models.program.EnsembleUpdate`.

    state, anchor, accumulator: pools `(capacity, elements)` float32. slots: `(rows,)` int64, distinct among the rows
    that matter: those that pad a batch to the size of a CUDA graph may share one scratch slot, with coefficients 0,
    and what becomes of it is undefined.
    output: the network's, `(rows or more, channels, *positions)` or `(rows or more, elements)`, float32, bfloat16 or
    float16, contiguous or channels-last; row r's own is `output[r]`. null_rows: `(rows,)` int64, the unconditional
    output of row r is `output[null_rows[r]]`; rows that are not guided point at themselves.
    coefficients: `(rows, 12)` float32. What a row has coefficient 0 for is not read, and a row whose three
    coefficients of the accumulator are all 0 does not write it.
    history: where rows keep their predictions, none of them where another does, and how those before are weighted.
    noise: `(rows, elements)` float32, or the keys to make it from.
    prediction: `(n, elements)` float32, written where given: row r's at `prediction_rows[r]` (`(rows,)` int64; -1: not
    kept), or at r without prediction_rows. network_input: `(rows or more, ...)` like `output`, written where given:
    the new states in the network's type and layout.

    Returns int32 `(rows,)`: 1 where a new state is not finite.

    Raises:
        ValueError: a shape or a type does not fit; names the argument.
    """
    rows = check_rows(slots, coefficients, ENSEMBLE_COLUMNS)
    have, elements = network_rows("output", output)
    if have < rows:
        raise ValueError(f"output has {have} rows, expected {rows} or more")
    check_pools(elements, state=state, anchor=anchor, accumulator=accumulator)
    cut = tiling(output, elements, BLOCK)
    check_like("network_input", network_input, output, rows)
    check_flat(rows, elements, noise=noise if isinstance(noise, Tensor) else None)
    check_prediction(rows, elements, prediction, prediction_rows)
    check_keys(rows, null_rows=null_rows)
    check_history(rows, elements, history)
    nonfinite = torch.zeros(rows, dtype=torch.int32, device=state.device)
    mode, given, seeds, samples, draws = noise_arguments(noise, state, slots)
    _ensemble_kernel[(cut.programs, rows)](
        state,
        slots,
        output,
        coefficients,
        anchor,
        slots if null_rows is None else null_rows,
        state if accumulator is None else accumulator,
        *(history or (state, slots, state, slots, slots)),
        given,
        seeds,
        samples,
        draws,
        state if prediction is None else prediction,
        slots if prediction_rows is None else prediction_rows,
        output if network_input is None else network_input,
        nonfinite,
        elements,
        cut.positions,
        0 if history is None else history.slots.shape[1],
        GUIDED=null_rows is not None,
        ACCUMULATES=accumulator is not None,
        WEIGHTED=history is not None,
        NOISE=mode,
        PREDICTION="none" if prediction is None else "all" if prediction_rows is None else "some",
        WRITES_INPUT=network_input is not None,
        **cut.constants,
        num_warps=cut.warps,
    )
    return nonfinite
