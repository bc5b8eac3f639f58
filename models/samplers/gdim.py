"""t-GDIM and T-GDIM: a generator's clean prediction at each step, and its energy (papers/iddim-gdim, section 4)."""

from __future__ import annotations

from math import sqrt

from ..card import ModelCard, ScaleSpec
from ..program import Line, Program, latent_draw
from ..schedules import alpha_bar, time_grid
from .ensemble import compile_ensemble
from .options import SampleOptions, UnsupportedError

OPTIONS = frozenset({"m", "form"})


def compile_gdim(card: ModelCard, options: SampleOptions) -> Program:
    """`p = G(u; x_t, t)` with a fresh latent u at each step, then the ensemble update (eq. 11).

    m defaults to 1, the method's own step (eqs. 8, 13); less is the paper's "ensemble augmentation" (Table 9).
    """
    return compile_ensemble(card, options, default_m=1.0, takes_latent=True)


def score_gdim(card: ModelCard, scale: ScaleSpec) -> Program:
    """The mean of `U(x_s | x_t) = -h(x_s, x_t, t)` over draws of x_t, one line for each.

    Both members of a pair are made from the image and the line's noise e, `sqrt(abar) x + sqrt(1 - abar) e`.
    An energy that takes no `target_signal` is one of (x_0, x_t), t-GDIM's own.
    The scale's parameters: `draws` of e for each time (1), and `every_time`: the mean over all the times that the
    model steps from instead of the scale's own.
    """
    energy, sampling = card.energy, card.sampling
    if energy is None or sampling is None:
        raise UnsupportedError("model", f"{card.name} has no energy to score with")
    table = alpha_bar(sampling.schedule)
    times = (0, *time_grid(sampling.default_steps, "quadratic", sampling.schedule.steps))
    following = dict(zip(times[1:], times[:-1], strict=True))
    chosen = times[1:] if scale.parameters.get("every_time") else (round(scale.time) + 1,)
    lines: list[Line] = []
    for _ in range(int(scale.parameters.get("draws", 1))):
        for t in chosen:
            abar_t, abar_s = float(table[t]), float(table[following[t]])
            scalars = {
                "time": float(t - 1),
                "signal": sqrt(abar_t),
                "noise": sqrt(1.0 - abar_t),
                "target_signal": sqrt(abar_s),
                "target_noise": sqrt(1.0 - abar_s),
            }
            lines.append(Line(network=energy.network, scalars=scalars, latent=latent_draw(len(lines))))
    return Program(scale.signal, scale.noise, tuple(lines))
