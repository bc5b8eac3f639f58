"""The updates in NumPy: what the server runs on the CPU.

At a few hundred values a row the time goes into the number of array operations, and one of NumPy's costs a third of one
of torch's; and a server that needs no torch starts faster and is 200 MB smaller.

State lives in pools, `(capacity, elements)` float32; `slots` says which rows of a pool take part.
Rows never mix: each result depends on its own row and coefficients alone, in a fixed order of float operations, so that
a row gets the same bytes in any batch.
What overflows or is not a number stays in its row, and is no warning: whoever runs these looks at the results.
"""

from __future__ import annotations

from math import erfc, inf, log, sqrt

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Slots = npt.NDArray[np.int64]

ENSEMBLE_COLUMNS = 12
LANGEVIN_COLUMNS = 7
METROPOLIS_COLUMNS = 6


@np.errstate(all="ignore")
def ensemble_step(
    state: Floats,
    slots: Slots,
    output: Floats,
    coefficients: Floats,
    *,
    anchor: Floats,
    null_output: Floats | None = None,
    accumulator: Floats | None = None,
    history: Floats | None = None,
    noise: Floats | None = None,
) -> tuple[Floats, Floats]:
    """The ensemble update (iDDIM eq. 6, 10, 11, 33, 4, 28), in place on the pools.

        out = output + guidance (output - null_output)
        p   = clip(p_state x + p_output out, low, high)
        y  <- y_accumulator y + y_prediction p
        x  <- state x + prediction p + anchor x_T + accumulator y + noise n + history

    state, anchor, accumulator: pools `(capacity, elements)`. slots: `(rows,)` int64, distinct.
    output, null_output, noise, history: `(rows, elements)`; history is the weighted sum of the predictions before.
    null_output: rows that are not guided may hold anything finite, e.g. output.
    coefficients: `(rows, 12)`, columns as in `models.program.EnsembleUpdate`.
    Returns the new states x and the predictions p, each `(rows, elements)`.

    Raises:
        ValueError: a shape does not fit.
    """
    rows, elements = output.shape
    _check("coefficients", coefficients, (rows, ENSEMBLE_COLUMNS))
    _check("slots", slots, (rows,))
    guidance, p_state, p_output, low, high, a, b, c, d, e, f, g = coefficients.T[:, :, None]
    x = state[slots]
    out = output
    if null_output is not None:
        _check("null_output", null_output, (rows, elements))
        out = output + guidance * (output - null_output)
    p = p_state * x
    p += p_output * out
    np.maximum(p, low, out=p)
    np.minimum(p, high, out=p)
    x *= a
    x += b * p
    x += c * anchor[slots]
    if accumulator is not None:
        y = f * accumulator[slots]
        y += g * p
        accumulator[slots] = y
        x += d * y
    if noise is not None:
        _check("noise", noise, (rows, elements))
        x += e * noise
    if history is not None:
        _check("history", history, (rows, elements))
        x += history
    # Terms that are absent for a row are added as zeros when a neighbour has them; adding 0 here turns -0 into +0 in
    # either case, so that the company leaves no trace in the bytes.
    x += np.float32(0.0)
    state[slots] = x
    return x, p


@np.errstate(all="ignore")
def langevin_step(
    state: Floats,
    slots: Slots,
    gradient: Floats,
    coefficients: Floats,
    *,
    anchor: Floats | None = None,
    noise: Floats | None = None,
) -> tuple[Floats, Floats]:
    """The Langevin update (SPEC 7), in place on the pool.

        d  = gradient_ g, scaled down to the norm max_displacement where it is longer
        x <- clip(state x + anchor x_anchor + d + noise n, low, high)

    state, anchor: pools `(capacity, elements)`. slots: `(rows,)` int64, distinct. gradient, noise: `(rows, elements)`.
    coefficients: `(rows, 7)`, columns as in `models.program.LangevinUpdate`.
    Returns the new states, `(rows, elements)`, and the norms of the gradients, `(rows,)`.

    Raises:
        ValueError: a shape does not fit.
    """
    rows, elements = gradient.shape
    _check("coefficients", coefficients, (rows, LANGEVIN_COLUMNS))
    _check("slots", slots, (rows,))
    a, c, s, e, limit, low, high = coefficients.T[:, :, None]
    norm = _norms(gradient)
    length = np.abs(s) * norm[:, None]
    scale = np.where(length > limit, limit / length, np.float32(1.0))
    x = a * state[slots]
    x += s * scale * gradient
    if anchor is not None:
        x += c * anchor[slots]
    if noise is not None:
        _check("noise", noise, (rows, elements))
        x += e * noise
    np.maximum(x, low, out=x)
    np.minimum(x, high, out=x)
    x += np.float32(0.0)
    state[slots] = x
    return x, norm


@np.errstate(all="ignore")
def metropolis_step(
    state: Floats,
    slots: Slots,
    energy: Floats,
    gradient: Floats,
    coefficients: Floats,
    *,
    place: Floats,
    slope: Floats,
    level: Floats,
    decision: Floats,
    noise: Floats | None = None,
) -> tuple[Floats, Floats, Floats]:
    """One Metropolis-adjusted Langevin step (MALA, SPEC 7), in place on the pools.

    The proposal in `state` is judged, which moves place x, slope (its gradient) and level (its energy) or leaves them,
    and the next one is made: `state <- x - step beta slope + sqrt(2 step) n`.

    state, place, slope: pools `(capacity, elements)`. level: pool `(capacity,)`. slots: `(rows,)` int64, distinct.
    energy: `(rows,)` and gradient: `(rows, elements)`, at the proposals. decision: `(rows,)` standard Gaussians.
    noise: `(rows, elements)`. coefficients: `(rows, 6)`, columns as in `models.program.MetropolisUpdate`.
    Returns the places x, `(rows, elements)`, their energies and the norms of the gradients there, `(rows,)` each.

    Raises:
        ValueError: a shape does not fit.
    """
    rows, elements = gradient.shape
    _check("coefficients", coefficients, (rows, METROPOLIS_COLUMNS))
    _check("slots", slots, (rows,))
    _check("energy", energy, (rows,))
    _check("decision", decision, (rows,))
    judged_beta, judged_step, beta, step, low, high = coefficients.T[:, :, None]
    proposal = state[slots]
    x, g, u = place[slots], slope[slots], level[slots]
    # In float64, as the difference of two large squares decides.
    drift, difference = (judged_step * judged_beta).astype(np.float64), (proposal - x).astype(np.float64)
    forth = np.square(difference + drift * g).sum(1)
    back = np.square(drift * gradient - difference).sum(1)
    a, b = judged_step[:, 0].astype(np.float64), judged_beta[:, 0].astype(np.float64)
    log_ratio = (forth - back) / (4.0 * a) - b * (energy - u).astype(np.float64)
    inside = ((proposal >= low) & (proposal <= high)).all(1)
    start = judged_step[:, 0] == 0.0  # nothing to judge by: what the division gave there is not looked at
    taken = start | (inside & (np.array([_log_ndtr(value) for value in decision.tolist()]) < log_ratio))
    keep = taken[:, None]
    x, g, u = np.where(keep, proposal, x), np.where(keep, gradient, g), np.where(taken, energy, u)
    place[slots], slope[slots], level[slots] = x, g, u
    new = x - step * beta * g
    if noise is not None:
        _check("noise", noise, (rows, elements))
        new += np.sqrt(np.float32(2.0) * step) * noise
    new += np.float32(0.0)
    state[slots] = new
    return x, u, _norms(g)


def _norms(rows: Floats) -> Floats:
    """Euclidean norms `(rows,)`, summed in float64, where the order of the sum leaves no trace in float32."""
    squares: npt.NDArray[np.float64] = np.square(rows, dtype=np.float64).sum(1)
    return np.sqrt(squares).astype(np.float32)


def _log_ndtr(value: float) -> float:
    """log of the standard normal distribution function: of a Gaussian, the log of a uniform number."""
    tail = 0.5 * erfc(-value / sqrt(2.0))
    return log(tail) if tail > 0.0 else -inf


def _check(name: str, array: npt.NDArray[np.generic], shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
