"""VDRME: one generator step per noise scale (papers/vdrme, eq. 15)."""

from __future__ import annotations

from ..card import ModelCard
from ..program import EnsembleUpdate, Line, Program, Update, latent_draw
from ..schedules import alpha_bar
from .ensemble import check_steps, iterate_step, prediction_range, temperature
from .options import SampleOptions, UnsupportedError
from .prediction import clean_prediction


def compile_vdrme(card: ModelCard, options: SampleOptions) -> Program:
    """Eq. 15 with the ratio of cumulative products (SPEC 3): a DDIM step whose network also takes noise.

    The grid `t_K > ... > t_0` holds network times; abar at network time t is `alpha_bar[t + 1]`,
    and 1 at t_0 when the model emits the clean prediction (`clean_end`).
    A network that takes `target_time` is told where the step goes; a network named with `{steps}`
    is one of several, one per grid.
    Without `clean_end` the image keeps the noise of t_0, which may take it out of the range of images.
    """
    spec = card.sampling
    if spec is None or not spec.grids:
        raise UnsupportedError("sampler", f"{card.name} has no trained time grids, which vdrme needs")
    steps = check_steps(spec, options)
    times = spec.grids[str(steps)]
    table = alpha_bar(spec.schedule)
    abar = [float(table[t + 1]) for t in times]
    if spec.clean_end:
        abar[-1] = 1.0
    lines = []
    for i in range(steps):
        step = iterate_step(abar[i], abar[i + 1], abar[0], m=0.0)
        low, high = prediction_range(card, last=spec.clean_end and i + 1 == steps)
        p_state, p_output = clean_prediction(spec.prediction, abar[i])
        rule = EnsembleUpdate(0.0, p_state, p_output, low, high, step.state, step.prediction, 0.0, 0.0, 0.0, 0.0, 0.0)
        lines.append(
            Line(
                network=spec.network,
                scalars={"time": float(times[i]), "target_time": float(times[i + 1])},
                updates=(Update(rule),),
                latent=latent_draw(i),
            )
        )
    return Program(0.0, temperature(options), tuple(lines))
