"""Torch twins of the fused kernels: their operators' CPU path, and the oracle that the kernels are tested against.

State lives in pools, `(capacity, elements)` float32; `slots` says which rows of a pool take part.
Rows never mix: each result depends on its own row and coefficients alone, in a fixed order of
float operations, so that a row gets the same bytes in any batch.

They run on any device, look at shapes alone and never at values, so that nothing waits for the device and a CUDA
graph can capture them. A term with coefficient 0 is selected away and not multiplied: what another request left in a
pool may be NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import philox_torch
from .launch import ANCHORS, COPY, STARTS, History

ENSEMBLE_COLUMNS = 12
LANGEVIN_COLUMNS = 7
METROPOLIS_COLUMNS = 6


def ensemble_step(
    state: Tensor,
    slots: Tensor,
    output: Tensor,
    coefficients: Tensor,
    *,
    anchor: Tensor,
    null_rows: Tensor | None = None,
    accumulator: Tensor | None = None,
    history: Tensor | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The ensemble update (iDDIM eq. 6, 10, 11, 33, 4, 28), in place on the pools.

        out = output + guidance (output - null)
        p   = clip(p_state x + p_output out, low, high)
        y  <- y_accumulator y + y_prediction p
        x  <- state x + prediction p + anchor x_T + accumulator y + noise n + history

    state, anchor, accumulator: pools `(capacity, elements)`. slots: `(rows,)` int64, distinct but for rows whose
    result nobody reads. output: `(rows or more, elements)`, row r's own first. null_rows: `(rows,)` int64, the row of
    output that is row r's unconditional one; r itself where it is not guided.
    noise, history: `(rows, elements)`; history is the weighted sum of the predictions before.
    coefficients: `(rows, 12)`, columns as in `models.program.EnsembleUpdate`. A row whose three coefficients of the
    accumulator are all 0 leaves it alone.
    Returns the new states x and the predictions p, each `(rows, elements)`.

    Raises:
        ValueError: a shape does not fit.
    """
    rows, elements = len(slots), output.shape[1]
    _check("slots", slots, (rows,))
    _check("coefficients", coefficients, (rows, ENSEMBLE_COLUMNS))
    if len(output) < rows:
        raise ValueError(f"output has shape {tuple(output.shape)}, expected {rows} rows or more")
    guidance, p_state, p_output, low, high, a, b, c, d, e, f, g = coefficients.unsqueeze(2).unbind(1)
    x = state.index_select(0, slots)
    out = output[:rows]
    if null_rows is not None:
        _check("null_rows", null_rows, (rows,))
        null = output.index_select(0, null_rows)
        out = torch.where(guidance != 0.0, out + guidance * (out - null), out)
    p = (p_state * x).add_(p_output * out)
    p = torch.clamp(p, low, high)
    new = (a * x).add_(b * p)
    new += _term(c, anchor.index_select(0, slots))
    if accumulator is not None:
        before = accumulator.index_select(0, slots)
        uses = (d != 0.0) | (f != 0.0) | (g != 0.0)
        y = (f * before).add_(g * p)
        accumulator.index_copy_(0, slots, torch.where(uses, y, before))
        new += torch.where(uses, d * y, 0.0)
    if noise is not None:
        _check("noise", noise, (rows, elements))
        new += _term(e, noise)
    if history is not None:
        _check("history", history, (rows, elements))
        new += history
    # Terms that are absent for a row are added as zeros when a neighbour has them; adding 0 here
    # turns -0 into +0 in either case, so that the company leaves no trace in the bytes.
    new += 0.0
    state.index_copy_(0, slots, new)
    return new, p


def weighted_history(history: History) -> Tensor:
    """The weighted sum of each row's predictions of the steps before (iDDIM eq. 4), `(rows, elements)`."""
    rows, most = history.slots.shape
    total = history.pool.new_zeros(rows, history.pool.shape[1])
    for index in range(most):
        before = history.pool.index_select(0, history.slots[:, index])
        there = (index < history.counts)[:, None]
        total += torch.where(there, history.weights[:, index, None] * before, 0.0)
    return total


def keep_prediction(kept: Tensor, places: Tensor | None, prediction: Tensor) -> None:
    """Put each row's prediction, `(rows, elements)`, into its place of the pool `kept`; those at -1 into none."""
    if places is None:
        kept[: len(prediction)].copy_(prediction)
    else:
        _write(kept, places.clamp(min=0), prediction, places >= 0)


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

    state, anchor: pools `(capacity, elements)`. slots: `(rows,)` int64, distinct but for rows whose result nobody
    reads. gradient, noise: `(rows, elements)`. coefficients: `(rows, 7)`, columns as in
    `models.program.LangevinUpdate`.
    Returns the new states, `(rows, elements)`, and the norms of the gradients, `(rows,)`.

    Raises:
        ValueError: a shape does not fit.
    """
    rows, elements = gradient.shape
    _check("coefficients", coefficients, (rows, LANGEVIN_COLUMNS))
    _check("slots", slots, (rows,))
    a, c, s, e, limit, low, high = coefficients.unsqueeze(2).unbind(1)
    norm = _norms(gradient)
    length = s.abs() * norm.unsqueeze(1)
    scale = torch.where(length > limit, limit / length, torch.ones_like(length))
    x = state.index_select(0, slots)
    new = (a * x).add_(s * scale * gradient)
    if anchor is not None:
        new += _term(c, anchor.index_select(0, slots))
    if noise is not None:
        _check("noise", noise, (rows, elements))
        new += _term(e, noise)
    new = torch.clamp(new, low, high)
    new += 0.0
    state.index_copy_(0, slots, new)
    return new, norm


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
    decision: Tensor,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One Metropolis-adjusted Langevin step (MALA, SPEC 7), in place on the pools; as `kernels.cpu.metropolis_step`.

    The proposal in `state` is judged, which moves place x, slope (its gradient) and level (its energy) or leaves them,
    and the next one is made: `state <- x - step beta slope + sqrt(2 step) n`.

    state, place, slope: pools `(capacity, elements)`. level: pool `(capacity,)`. slots: `(rows,)` int64, distinct but
    for rows whose result nobody reads. energy: `(rows,)` and gradient: `(rows, elements)`, at the proposals.
    decision: `(rows,)` standard Gaussians. noise: `(rows, elements)`. coefficients: `(rows, 6)`, columns as in
    `models.program.MetropolisUpdate`.
    Returns the places x, `(rows, elements)`, their energies and the norms of the gradients there, `(rows,)` each.

    Raises:
        ValueError: a shape does not fit.
    """
    rows, elements = gradient.shape
    _check("coefficients", coefficients, (rows, METROPOLIS_COLUMNS))
    _check("slots", slots, (rows,))
    _check("energy", energy, (rows,))
    _check("decision", decision, (rows,))
    judged_beta, judged_step, beta, step, low, high = coefficients.unsqueeze(2).unbind(1)
    proposal = state.index_select(0, slots)
    x, g, u = place.index_select(0, slots), slope.index_select(0, slots), level.index_select(0, slots)
    # In float64, as the difference of two large squares decides.
    drift, difference = (judged_step * judged_beta).double(), (proposal - x).double()
    forth = (difference + drift * g.double()).square().sum(1)
    back = (drift * gradient.double() - difference).square().sum(1)
    a, b = judged_step[:, 0].double(), judged_beta[:, 0].double()
    log_ratio = (forth - back) / (4.0 * a) - b * (energy - u).double()
    inside = ((proposal >= low) & (proposal <= high)).all(1)
    start = judged_step[:, 0] == 0.0  # nothing to judge by: what the division gave there is not looked at
    # A Gaussian's distribution function makes a uniform number of it.
    taken = start | (inside & (torch.special.log_ndtr(decision.double()) < log_ratio))
    keep = taken[:, None]
    x, g, u = torch.where(keep, proposal, x), torch.where(keep, gradient, g), torch.where(taken, energy, u)
    for pool, values in ((place, x), (slope, g), (level, u)):
        pool.index_copy_(0, slots, values)
    new = x - step * beta * g
    if noise is not None:
        _check("noise", noise, (rows, elements))
        new += _term(torch.sqrt(2.0 * step), noise)
    new += 0.0
    state.index_copy_(0, slots, new)
    return x, u, _norms(g)


def gather(
    state: Tensor,
    slots: Tensor,
    network_input: Tensor | None = None,
    *,
    anchor: Tensor,
    modes: Tensor,
    accumulator: Tensor | None = None,
    stds: Tensor,
    images: Tensor | None = None,
    image_rows: Tensor | None = None,
    seeds: Tensor,
    samples: Tensor,
    draws: Tensor,
    noise: Tensor | None = None,
) -> None:
    """See `kernels.gather.gather`. noise: `(rows, elements)`, made of its keys where it is not given.

    Raises:
        ValueError: a shape does not fit.
    """
    rows, elements = len(slots), state.shape[1]
    for name, tensor in {"slots": slots, "modes": modes, "stds": stds}.items():
        _check(name, tensor, (rows,))
    starts, anchors, copies = ((modes & bit) != 0 for bit in (STARTS, ANCHORS, COPY))
    if noise is None:
        noise = philox_torch.normal(seeds, samples, draws, elements)
    x = _term(stds[:, None], noise)
    if images is not None and image_rows is not None:
        _check("image_rows", image_rows, (rows,))
        picked = images.index_select(0, image_rows.clamp(min=0))
        x = x + torch.where(image_rows[:, None] >= 0, picked, 0.0)
    x = torch.where(starts[:, None], x, state.index_select(0, slots))
    _write(state, slots, x, starts & ~copies)
    _write(anchor, slots, x, (starts | anchors) & ~copies)
    if accumulator is not None:
        _write(accumulator, slots, x, starts & ~copies)
    if network_input is not None:
        network_input[:rows].copy_(x.view(rows, *network_input.shape[1:]))


def normal_(out: Tensor, seeds: Tensor, samples: Tensor, draws: Tensor) -> None:
    """See `kernels.gather.normal_`."""
    elements = out[0].numel()
    out.copy_(philox_torch.normal(seeds, samples, draws, elements).view(out.shape))


def _term(coefficient: Tensor, values: Tensor) -> Tensor:
    return torch.where(coefficient != 0.0, coefficient * values, 0.0)


def _write(pool: Tensor, slots: Tensor, values: Tensor, writes: Tensor) -> None:
    """`pool[slots[r]] <- values[r]` where writes[r].

    Rows that do not write may share a slot with one that does. So all rows of a slot write the same: what its writer
    has, or else what is there.
    """
    row = torch.arange(len(slots), device=slots.device)
    writer = torch.full((len(pool),), -1, dtype=torch.int64, device=slots.device)
    writer.scatter_reduce_(0, slots, torch.where(writes, row, -1), "amax")
    mine = writer.index_select(0, slots)
    there = pool.index_select(0, slots)
    pool.index_copy_(0, slots, torch.where(mine[:, None] >= 0, values.index_select(0, mine.clamp(min=0)), there))


def _norms(gradient: Tensor) -> Tensor:
    """Euclidean norms `(rows,)`, summed in float64: a float32 sum would depend on how the reduction is split."""
    return gradient.double().square().sum(1).sqrt().to(gradient.dtype)


def _check(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
