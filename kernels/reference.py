"""Torch twins of the fused kernels: their operators' CPU path, and the oracle that the kernels are tested against.

State lives in pools, `(capacity, elements)` float32; `slots` says which rows of a pool take part.
Rows never mix: each result depends on its own row and coefficients alone, in a fixed order of
float operations, so that a row gets the same bytes in any batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

ENSEMBLE_COLUMNS = 12
LANGEVIN_COLUMNS = 7


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
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The ensemble update (iDDIM eq. 6, 10, 11, 33, 4, 28), in place on the pools.

        out = output + guidance (output - null_output)
        p   = clip(p_state x + p_output out, low, high)
        y  <- y_accumulator y + y_prediction p
        x  <- state x + prediction p + anchor x_T + accumulator y + noise n + history

    state, anchor, accumulator: pools `(capacity, elements)`. slots: `(rows,)` int64, distinct.
    output, null_output, noise, history: `(rows, elements)`; history is the weighted sum of the
    predictions before. null_output: rows that are not guided may hold anything finite, e.g. output.
    coefficients: `(rows, 12)`, columns as in `models.program.EnsembleUpdate`.
    Returns the new states x and the predictions p, each `(rows, elements)`.

    Raises:
        ValueError: a shape does not fit.
    """
    rows, elements = output.shape
    _check("coefficients", coefficients, (rows, ENSEMBLE_COLUMNS))
    _check("slots", slots, (rows,))
    guidance, p_state, p_output, low, high, a, b, c, d, e, f, g = coefficients.unsqueeze(2).unbind(1)
    x = state.index_select(0, slots)
    out = output
    if null_output is not None:
        _check("null_output", null_output, (rows, elements))
        out = output + guidance * (output - null_output)
    p = (p_state * x).add_(p_output * out)
    p = torch.clamp(p, low, high)
    new = (a * x).add_(b * p)
    new += c * anchor.index_select(0, slots)
    if accumulator is not None:
        y = (f * accumulator.index_select(0, slots)).add_(g * p)
        accumulator.index_copy_(0, slots, y)
        new += d * y
    if noise is not None:
        _check("noise", noise, (rows, elements))
        new += e * noise
    if history is not None:
        _check("history", history, (rows, elements))
        new += history
    # Terms that are absent for a row are added as zeros when a neighbour has them; adding 0 here
    # turns -0 into +0 in either case, so that the company leaves no trace in the bytes.
    new += 0.0
    state.index_copy_(0, slots, new)
    return new, p


def langevin_step(
    state: Tensor,
    slots: Tensor,
    gradient: Tensor,
    coefficients: Tensor,
    *,
    anchor: Tensor | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The Langevin update (SPEC 7), in place on the pool.

        d  = gradient_ g, scaled down to the norm max_displacement where it is longer
        x <- clip(state x + anchor x_anchor + d + noise n, low, high)

    state, anchor: pools `(capacity, elements)`. slots: `(rows,)` int64, distinct.
    gradient, noise: `(rows, elements)`. coefficients: `(rows, 7)`, columns as in
    `models.program.LangevinUpdate`.
    Returns the new states, `(rows, elements)`, and the norms of the gradients, `(rows,)`.

    Raises:
        ValueError: a shape does not fit.
    """
    rows, elements = gradient.shape
    _check("coefficients", coefficients, (rows, LANGEVIN_COLUMNS))
    _check("slots", slots, (rows,))
    a, c, s, e, limit, low, high = coefficients.unsqueeze(2).unbind(1)
    # Summed in float64, row by row: a float32 sum would depend on how the reduction is split.
    norm = gradient.double().square().sum(1).sqrt().to(gradient.dtype)
    length = s.abs() * norm.unsqueeze(1)
    scale = torch.where(length > limit, limit / length, torch.ones_like(length))
    x = state.index_select(0, slots)
    new = (a * x).add_(s * scale * gradient)
    if anchor is not None:
        new += c * anchor.index_select(0, slots)
    if noise is not None:
        _check("noise", noise, (rows, elements))
        new += e * noise
    new = torch.clamp(new, low, high)
    new += 0.0
    state.index_copy_(0, slots, new)
    return new, norm


def _check(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
