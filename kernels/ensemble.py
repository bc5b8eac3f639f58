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

from .device import normal, place
from .launch import Noise, check_flat, check_like, check_pools, check_rows, layout, network_rows, noise_arguments
from .reference import ENSEMBLE_COLUMNS

BLOCK = 1024
WARPS = 4


@triton.jit
def _ensemble_kernel(  # type: ignore[no-untyped-def]
    state,
    slots,
    output,
    coefficients,
    anchor,
    null_output,
    accumulator,
    history,
    weights,
    lines,
    noise,
    seeds,
    samples,
    draws,
    prediction,
    network_input,
    nonfinite,
    elements,
    channels,
    weights_stride,
    history_stride,
    GUIDED: tl.constexpr,
    ACCUMULATES: tl.constexpr,
    WEIGHTED: tl.constexpr,
    NOISE: tl.constexpr,
    WRITES_PREDICTION: tl.constexpr,
    WRITES_INPUT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1) * BLOCK
    element = start + tl.arange(0, BLOCK)
    inside = element < elements
    at_network = row * elements + place(element, elements, channels, CHANNELS_LAST)
    at_row = row * elements + element
    slot = tl.load(slots + row)
    at_pool = slot * elements + element

    column = coefficients + row * 12
    guidance = tl.load(column)
    p_state, p_output = tl.load(column + 1), tl.load(column + 2)
    low, high = tl.load(column + 3), tl.load(column + 4)
    of_state, of_prediction, of_anchor = tl.load(column + 5), tl.load(column + 6), tl.load(column + 7)
    of_accumulator, of_noise = tl.load(column + 8), tl.load(column + 9)

    x = tl.load(state + at_pool, mask=inside, other=0.0)
    out = tl.load(output + at_network, mask=inside, other=0.0).to(tl.float32)
    if GUIDED:
        if guidance != 0.0:
            null = tl.load(null_output + at_network, mask=inside, other=0.0).to(tl.float32)
            out += guidance * (out - null)
    p = p_state * x + p_output * out
    # Not a minimum and a maximum: those would turn NaN into a number.
    p = tl.where(p < low, low, tl.where(p > high, high, p))
    new = of_state * x + of_prediction * p
    if of_anchor != 0.0:
        new += of_anchor * tl.load(anchor + at_pool, mask=inside, other=0.0)
    if ACCUMULATES:
        y = tl.load(accumulator + at_pool, mask=inside, other=0.0)
        y = tl.load(column + 10) * y + tl.load(column + 11) * p
        tl.store(accumulator + at_pool, y, mask=inside)
        new += of_accumulator * y
    if NOISE == 1:
        new += of_noise * tl.load(noise + at_row, mask=inside, other=0.0)
    if NOISE == 2:
        if of_noise != 0.0:
            new += of_noise * normal(tl.load(seeds + row), tl.load(samples + row), tl.load(draws + row), start, BLOCK)
    if WEIGHTED:
        line = tl.load(lines + row)
        if line >= 0:
            kept = history + slot * history_stride + element
            index = line * 0
            while index < line:
                weight = tl.load(weights + row * weights_stride + index)
                new += weight * tl.load(kept + index * elements, mask=inside, other=0.0)
                index += 1
            tl.store(kept + line * elements, p, mask=inside)
    tl.store(state + at_pool, new, mask=inside)
    if WRITES_PREDICTION:
        tl.store(prediction + at_row, p, mask=inside)
    if WRITES_INPUT:
        tl.store(network_input + at_network, new, mask=inside)
    # x - x is 0 for finite x alone. All who find something else write the same 1.
    if tl.sum((tl.where(inside, new - new, 0.0) != 0.0).to(tl.int32)) > 0:
        tl.store(nonfinite + row, 1)


def ensemble_step(
    state: Tensor,
    slots: Tensor,
    output: Tensor,
    coefficients: Tensor,
    *,
    anchor: Tensor,
    null_output: Tensor | None = None,
    accumulator: Tensor | None = None,
    history: Tensor | None = None,
    weights: Tensor | None = None,
    lines: Tensor | None = None,
    noise: Tensor | Noise | None = None,
    prediction: Tensor | None = None,
    network_input: Tensor | None = None,
) -> Tensor:
    """One ensemble update of several rows, in place on the pools; see `models.program.EnsembleUpdate`.

    state, anchor, accumulator: pools `(capacity, elements)` float32. slots: `(rows,)` int64, distinct.
    output, null_output: the network's, `(rows, channels, *positions)` or `(rows, elements)`, float32, bfloat16 or
    float16, contiguous or channels-last. coefficients: `(rows, 12)` float32.
    history: pool of predictions `(capacity, steps, elements)` float32, with weights `(rows, steps)` float32 of the
    predictions before and lines `(rows,)` int64, the step that each row is at (its prediction is kept there; -1: the
    row keeps none).
    noise: `(rows, elements)` float32, or the keys to make it from.
    prediction: `(rows, elements)` float32, written where given. network_input: like `output`, written where given:
    the new states in the network's type and layout.

    Returns int32 `(rows,)`: 1 where a new state is not finite.

    Raises:
        ValueError: a shape or a type does not fit; names the argument.
    """
    rows, elements = network_rows("output", output)
    check_pools(elements, state=state, anchor=anchor, accumulator=accumulator)
    check_rows(rows, slots, coefficients, ENSEMBLE_COLUMNS)
    channels, channels_last = layout(output)
    check_like("null_output", null_output, output)
    check_like("network_input", network_input, output)
    check_flat(rows, elements, noise=noise if isinstance(noise, Tensor) else None, prediction=prediction)
    if history is not None and (weights is None or lines is None):
        raise ValueError("history needs weights and lines")
    nonfinite = torch.zeros(rows, dtype=torch.int32, device=state.device)
    mode, given, seeds, samples, draws = noise_arguments(noise, state, slots)
    _ensemble_kernel[(rows, triton.cdiv(elements, BLOCK))](
        state,
        slots,
        output,
        coefficients,
        anchor,
        state if null_output is None else null_output,
        state if accumulator is None else accumulator,
        state if history is None else history,
        state if weights is None else weights,
        slots if lines is None else lines,
        given,
        seeds,
        samples,
        draws,
        state if prediction is None else prediction,
        state if network_input is None else network_input,
        nonfinite,
        elements,
        channels,
        0 if weights is None else weights.stride(0),
        0 if history is None else history.stride(0),
        GUIDED=null_output is not None,
        ACCUMULATES=accumulator is not None,
        WEIGHTED=history is not None,
        NOISE=mode,
        WRITES_PREDICTION=prediction is not None,
        WRITES_INPUT=network_input is not None,
        CHANNELS_LAST=channels_last,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )
    return nonfinite
