"""Ensemble denoising implicit models: DDIM, iDDIM, radical and custom weights ("iDDIM", papers/iddim-gdim).

Notation of SPEC 1: one step goes from t to s, T is the first time, p the prediction of the clean
image, and each function returns the coefficients of (x_t, p, x_T, accumulator) in x_s.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from ..card import ModelCard, SamplingSpec
from ..program import INFINITY, EnsembleUpdate, Line, Program, Update, latent_draw, noise_draw
from ..schedules import alpha_bar, time_grid
from .options import OptionError, SampleOptions, UnsupportedError
from .prediction import clean_prediction

MAX_GUIDANCE = 100.0


@dataclass(frozen=True, slots=True)
class Step:
    """Coefficients of one step from t to s.

    `x_s = state x_t + prediction p + anchor x_T + accumulator y_s + noise n`,
    with `y_s = y_accumulator y_t + y_prediction p`.
    """

    state: float = 0.0
    prediction: float = 0.0
    anchor: float = 0.0
    accumulator: float = 0.0
    noise: float = 0.0
    y_accumulator: float = 0.0
    y_prediction: float = 0.0


def sigma(abar_t: float, abar_s: float, eta: float) -> float:
    """Noise std of the stochastic form (eq. 28; DDPM at eta = 1).

    `eta sqrt((1-abar_s)/(1-abar_t)) sqrt(1-abar_t/abar_s)`.
    """
    return eta * sqrt((1.0 - abar_s) / (1.0 - abar_t)) * sqrt(1.0 - abar_t / abar_s)


def iterate_step(abar_t: float, abar_s: float, abar_T: float, m: float, eta: float = 0.0) -> Step:
    """iDDIM eq. 11 on the iterate: `x_s = (1-m) y + m z`, y by DDIM (6, 28), z radical (10)."""
    std = sigma(abar_t, abar_s, eta)
    root = sqrt(max(0.0, 1.0 - abar_s - std * std))
    to_t, to_T = root / sqrt(1.0 - abar_t), root / sqrt(1.0 - abar_T)
    return Step(
        state=(1.0 - m) * to_t,
        prediction=sqrt(abar_s) - (1.0 - m) * to_t * sqrt(abar_t) - m * to_T * sqrt(abar_T),
        anchor=m * to_T,
        noise=std,
    )


def accumulator_step(abar_t: float, abar_s: float, abar_T: float, m: float) -> Step:
    """iDDIM eq. 33: y runs by DDIM (6) on its own accumulator, `x_s = (1-m) y_s + m z_s`."""
    to_t, to_T = sqrt((1.0 - abar_s) / (1.0 - abar_t)), sqrt((1.0 - abar_s) / (1.0 - abar_T))
    return Step(
        prediction=m * (sqrt(abar_s) - to_T * sqrt(abar_T)),
        anchor=m * to_T,
        accumulator=1.0 - m,
        y_accumulator=to_t,
        y_prediction=sqrt(abar_s) - to_t * sqrt(abar_t),
    )


def weighted_step(abar_s: float, abar_T: float, weight: float) -> tuple[Step, float]:
    """Ensemble eq. 4: `x_s = B sum_k w_k p_k + C x_T`, B and C of eq. 5.

    weight: the normalised weight of the latest prediction. Returns the step and B, by which the
    weights of the older predictions are to be multiplied.
    """
    c = sqrt((1.0 - abar_s) / (1.0 - abar_T))
    b = sqrt(abar_s) - c * sqrt(abar_T)
    return Step(prediction=b * weight, anchor=c), b


def compile_ddim(card: ModelCard, options: SampleOptions) -> Program:
    """DDIM, eq. 6 (eq. 28 with eta): m = 0."""
    return compile_ensemble(card, options, default_m=0.0)


def compile_iddim(card: ModelCard, options: SampleOptions) -> Program:
    """iDDIM, eq. 11, or eq. 33 for `form = accumulator`; m defaults to 0.6, the paper's best at T = 10 (Table 2)."""
    return compile_ensemble(card, options, default_m=0.6)


def compile_radical(card: ModelCard, options: SampleOptions) -> Program:
    """The radical ensemble, eq. 10: m = 1."""
    return compile_ensemble(card, options, default_m=1.0)


def compile_custom(card: ModelCard, options: SampleOptions) -> Program:
    """Any convex weights over the predictions so far, eq. 4."""
    return compile_ensemble(card, options, default_m=0.0)


def compile_ensemble(
    card: ModelCard, options: SampleOptions, default_m: float, *, takes_latent: bool = False
) -> Program:
    """The ensemble update on the model's network. takes_latent: it takes a fresh latent at each step (t-GDIM)."""
    spec = card.sampling
    if spec is None:
        raise UnsupportedError("model", f"{card.name} has no sampler")
    steps = check_steps(spec, options)
    times = (*reversed(_grid(spec, options, steps)), 0)
    table = alpha_bar(spec.schedule)
    abar = tuple(float(table[t]) for t in times)
    m = _ensemble_weights(options, steps, default_m)
    eta = unit_interval("eta", options.eta, 0.0)
    accumulator = _form(options) == "accumulator"
    if accumulator and eta:
        raise UnsupportedError("eta", "the accumulator form has no stochastic variant; use form 'iterate'")
    weights = _custom_weights(options, steps)
    guidance = check_guidance(card, options)
    lines = []
    for i in range(steps):
        last = i + 1 == steps
        low, high = prediction_range(card, last=last)
        history: tuple[float, ...] = ()
        if weights:
            step, b = weighted_step(abar[i + 1], abar[0], weights[i][-1])
            history = tuple(b * weight for weight in weights[i][:-1])
        elif accumulator and not last:  # at abar_s = 1 both forms are the prediction itself
            step = accumulator_step(abar[i], abar[i + 1], abar[0], m[i])
        else:
            step = iterate_step(abar[i], abar[i + 1], abar[0], m[i], eta)
        p_state, p_output = clean_prediction(spec.prediction, abar[i])
        rule = EnsembleUpdate(
            guidance, p_state, p_output, low, high,
            step.state, step.prediction, step.anchor, step.accumulator, step.noise,
            step.y_accumulator, step.y_prediction,
        )  # fmt: skip
        lines.append(
            Line(
                network=spec.network,
                scalars={"time": float(times[i] - 1)},
                updates=(Update(rule, noise=noise_draw(i) if step.noise else None, history=history),),
                guided=guidance != 0.0,
                latent=latent_draw(i) if takes_latent else None,
            )
        )
    return Program(0.0, temperature(options), tuple(lines), uses_accumulator=accumulator)


def prediction_range(card: ModelCard, *, last: bool) -> tuple[float, float]:
    """The box of a step's clean prediction: the range of images where the model clips, else none.

    last: the prediction is what the caller gets; an image lies in its model's range, clipped on the way or not.
    """
    clips = last or (card.sampling is not None and card.sampling.clip)
    return (card.image.low, card.image.high) if clips else (-INFINITY, INFINITY)


def image_update(card: ModelCard) -> Update:
    """The sample becomes the network's image, clipped to the range of images."""
    return Update(EnsembleUpdate(0.0, 0.0, 1.0, card.image.low, card.image.high, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0))


def check_steps(spec: SamplingSpec, options: SampleOptions) -> int:
    """The number of steps, by default the model's.

    Raises:
        OptionError: not accepted by the model.
    """
    steps = spec.default_steps if options.steps is None else options.steps
    accepted = spec.accepted_steps()
    if steps not in accepted:
        listed = ", ".join(map(str, accepted)) if spec.grids else f"{accepted[0]}..{accepted[-1]}"
        raise OptionError(
            "steps", f"must be one of {listed}, got {steps}" if spec.grids else f"must be within {listed}, got {steps}"
        )
    return steps


def unit_interval(name: str, value: float | None, default: float) -> float:
    """An option within [0, 1].

    Raises:
        OptionError: outside, or NaN.
    """
    if value is None:
        return default
    if not 0.0 <= value <= 1.0:
        raise OptionError(name, f"must be within [0, 1], got {value}")
    return value


def temperature(options: SampleOptions) -> float:
    """Std of the prior noise, 1 by default.

    Raises:
        OptionError: not within [0, 10].
    """
    value = 1.0 if options.temperature is None else options.temperature
    if not 0.0 <= value <= 10.0:
        raise OptionError("temperature", f"must be within [0, 10], got {value}")
    return value


def check_guidance(card: ModelCard, options: SampleOptions) -> float:
    """Guidance weight w, `(1+w) eps(x, c) - w eps(x, null)` (classifier-free guidance, eq. 6); 0 by default.

    Raises:
        OptionError: negative, too large or NaN.
        UnsupportedError: the model has no labels or no null label.
    """
    value = 0.0 if options.guidance is None else options.guidance
    if not 0.0 <= value <= MAX_GUIDANCE:
        raise OptionError("guidance", f"must be within [0, {MAX_GUIDANCE:g}], got {value}")
    if value and (card.labels is None or card.labels.null is None):
        raise UnsupportedError("guidance", f"{card.name} has no null label, which guidance needs")
    return value


def _grid(spec: SamplingSpec, options: SampleOptions, steps: int) -> tuple[int, ...]:
    """The times, increasing; where the caller chose no spacing, quadratic unless that repeats times, then linear."""
    total = spec.schedule.steps
    try:
        if options.spacing is not None:
            return time_grid(steps, options.spacing, total)
        try:
            return time_grid(steps, "quadratic", total)
        except ValueError:
            return time_grid(steps, "linear", total)
    except ValueError as error:
        raise OptionError("spacing", str(error)) from None


def _ensemble_weights(options: SampleOptions, steps: int, default: float) -> tuple[float, ...]:
    m = options.m or (default,)
    for value in m:
        unit_interval("m", value, default)
    if len(m) == 1:
        return m * steps
    if len(m) != steps:
        raise OptionError("m", f"must hold 1 value or one per step ({steps}), got {len(m)}")
    return m


def _form(options: SampleOptions) -> str:
    form = options.form or "iterate"
    if form not in ("iterate", "accumulator"):
        raise OptionError("form", f"must be 'iterate' or 'accumulator', got {form!r}")
    return form


def _custom_weights(options: SampleOptions, steps: int) -> list[list[float]]:
    """Normalised weights, one row a step, oldest prediction first; empty for every sampler but `custom`."""
    if options.sampler != "custom":
        return []
    if len(options.weights) != steps:
        raise OptionError("weights", f"must hold one row per step ({steps}), got {len(options.weights)}")
    rows = []
    for i, row in enumerate(options.weights):
        if len(row) != i + 1:
            raise OptionError("weights", f"row {i} must hold {i + 1} values, one per prediction so far, got {len(row)}")
        total = sum(row)
        if not all(0.0 <= value < INFINITY for value in row) or not total > 0.0:
            raise OptionError(
                "weights", f"row {i} must hold non-negative finite values with a positive sum, got {list(row)}"
            )
        if total == INFINITY:
            raise OptionError("weights", f"the sum of row {i} is more than a float can hold, got {list(row)}")
        rows.append([value / total for value in row])
    rows[-1] = _inwards(rows[-1])
    return rows


def _inwards(weights: list[float]) -> list[float]:
    """The last step's weights, less what float32 may add to their sum by rounding each weight, product and addition.

    Where all predictions agree on the edge of the range of images, as they do on a background of -1, their mean is what
    the caller gets, and would be no image if it were beyond the edge by the last bit.
    """
    if not any(weights[:-1]):
        return weights
    return [weight * (1.0 - (len(weights) + 2) * 2.0**-24) for weight in weights]
