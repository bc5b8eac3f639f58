"""The samplers as mathematics: closed forms, equalities between methods, and refusals that name the option."""

from __future__ import annotations

import contextlib
import itertools
from math import sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.philox import normal
from models.card import ModelCard, ScheduleSpec
from models.checkpoint import load_checkpoint
from models.program import EnsembleUpdate, start_draw
from models.quality.rows import rows_of
from models.run import run
from models.samplers import SAMPLERS, OptionError, SampleOptions, UnsupportedError, compile_sample
from models.samplers.ensemble import accumulator_step, iterate_step
from models.samplers.prediction import clean_prediction
from models.schedules import alpha_bar, quadratic_grid

from ..conftest import ZOO
from .cards import PLANE, denoiser_card, energy_card, vdrme_card

ABAR = alpha_bar(ScheduleSpec())
VARIANCE = 0.25  # of the Gaussian data


def gaussian_eps(sample: torch.Tensor, time: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor]:
    """The exact eps-prediction for data N(0, VARIANCE): E[eps | x_t]."""
    abar = torch.tensor(ABAR)[(time + 1).long()].reshape(-1, 1, 1, 1)
    return ((1 - abar).sqrt() * sample / (abar * VARIANCE + 1 - abar),)


def curved_eps(sample: torch.Tensor, time: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor]:
    """Some non-linear prediction, for equalities that must hold for any network."""
    return (torch.tanh(sample * 1.3 + time.reshape(-1, 1, 1, 1) / 700 + label.reshape(-1, 1, 1, 1) / 5),)


def draw(card: ModelCard, network=curved_eps, *, count: int = 3, labels=None, **options) -> torch.Tensor:
    program = compile_sample(card, SampleOptions(**options))
    networks = {"denoiser": network}
    return run(program, card, networks, seed=11, count=count, labels=labels, dtype=torch.float64).state


def iddim_weights(abar: tuple[float, ...], m: tuple[float, ...]) -> list[list[float]]:
    """The weights of eq. 34, indices mended (SPEC 1), that make iDDIM the ensemble of eq. 4.

    abar: at the times T = tau_last > ... > tau_1 > 0, `(steps + 1,)`; m: one a step.
    Row i holds the normalised weights of the predictions of steps 0..i, oldest first. The last row is the limit
    abar -> 1, in which the ratio of signal to noise is infinite: (0, ..., 0, 1), the latest prediction alone.
    """
    ratio = [sqrt(a / (1.0 - a)) for a in abar[:-1]]
    rows = []
    for i in range(len(m) - 1):
        older = [(1.0 - m[i]) * (ratio[k + 1] - ratio[k]) for k in range(i)]
        latest = ratio[i + 1] - ratio[i] + m[i] * (ratio[i] - ratio[0])
        rows.append([weight / (ratio[i + 1] - ratio[0]) for weight in (*older, latest)])
    return [*rows, [0.0] * (len(m) - 1) + [1.0]]


@pytest.mark.parametrize("name", ["ddim", "iddim", "radical", "custom"])
@pytest.mark.parametrize("steps", [1, 2, 7, 63])
def test_every_sampler_ends_on_its_last_prediction(name, steps):
    """The last step lands on the clean prediction: no state, anchor or noise is left in it."""
    weights = tuple((0.0,) * i + (1.0,) for i in range(steps)) if name == "custom" else ()
    program = compile_sample(denoiser_card(), SampleOptions(sampler=name, steps=steps, weights=weights))
    last = program.lines[-1].updates[0].rule
    assert isinstance(last, EnsembleUpdate)
    assert (last.state, last.prediction, last.anchor, last.noise) == (0.0, 1.0, 0.0, 0.0)
    assert program.nfe == steps


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("form", ["iterate", "accumulator"])
def test_m_is_inert_for_up_to_two_steps(steps, form):
    """m does nothing at the first step and at the last, so up to T = 2 it does nothing at all (SPEC 1)."""
    reference = draw(denoiser_card(), sampler="ddim", steps=steps)
    for m in (0.0, 0.3, 1.0):
        assert torch.allclose(
            draw(denoiser_card(), sampler="iddim", steps=steps, m=(m,), form=form), reference, atol=1e-12
        )


def test_m_interpolates_between_ddim_and_radical():
    """iDDIM at m = 0 is DDIM, at m = 1 the radical ensemble; in between it is neither."""
    card = denoiser_card()
    ddim, radical = draw(card, sampler="ddim", steps=6), draw(card, sampler="radical", steps=6)
    assert torch.equal(draw(card, sampler="iddim", steps=6, m=(0.0,)), ddim)
    assert torch.equal(draw(card, sampler="iddim", steps=6, m=(1.0,)), radical)
    between = draw(card, sampler="iddim", steps=6, m=(0.5,))
    assert (between - ddim).abs().max() > 1e-3
    assert (between - radical).abs().max() > 1e-3


@pytest.mark.parametrize("total", [100, 1000])
def test_the_default_spacing_is_quadratic_until_that_repeats_times(total):
    """Without a spacing every number of steps compiles: quadratic where its times differ, else linear."""
    card = denoiser_card(schedule=ScheduleSpec(steps=total))
    chosen = set()
    for steps in card.sampling.accepted_steps():
        given = {}
        for spacing in ("quadratic", "linear"):
            with contextlib.suppress(OptionError):
                given[spacing] = compile_sample(card, SampleOptions(steps=steps, spacing=spacing))
        wanted = "quadratic" if "quadratic" in given else "linear"
        assert compile_sample(card, SampleOptions(steps=steps)) == given[wanted], steps
        chosen.add(wanted)
    assert chosen == {"quadratic", "linear"}


def test_iterate_and_accumulator_differ_from_three_steps_on():
    """(11) on the iterate and (33) on the accumulator agree up to T = 3 and differ from T = 4 on (SPEC 1)."""
    card = denoiser_card(image=PLANE, clip=False)
    pair = {
        t: [draw(card, sampler="iddim", steps=t, m=(0.5,), form=form) for form in ("iterate", "accumulator")]
        for t in (3, 4)
    }
    assert torch.allclose(*pair[3], atol=1e-12)
    assert (pair[4][0] - pair[4][1]).abs().max() > 1e-4


@pytest.mark.parametrize("steps", [2, 3, 5, 8])
@pytest.mark.parametrize("m", [0.0, 0.35, 1.0])
def test_accumulator_form_is_the_ensemble_of_equation_34(steps, m):
    """iDDIM's accumulator form (33) equals the general ensemble (4) with the mended weights of (34)."""
    abar = tuple(float(ABAR[t]) for t in (*reversed(quadratic_grid(steps)), 0))
    weights = tuple(tuple(row) for row in iddim_weights(abar, (m,) * steps))
    assert all(sum(row) == pytest.approx(1.0, abs=1e-12) for row in weights)
    custom = draw(denoiser_card(), sampler="custom", steps=steps, weights=weights)
    assert torch.allclose(
        custom, draw(denoiser_card(), sampler="iddim", steps=steps, m=(m,), form="accumulator"), atol=1e-9
    )


@given(
    abar=st.tuples(st.floats(1e-5, 0.3), st.floats(0.31, 0.6), st.floats(0.61, 1.0)),
    m=st.floats(0, 1),
    p=st.floats(-1, 1),
    n=st.floats(-3, 3),
)
def test_a_perfect_prediction_stays_on_the_line_to_the_anchor(abar, m, p, n):
    """If p is the clean image, x_t = sqrt(abar_t) p + sqrt(1-abar_t) n stays on that line at s, for any m (eq. 8)."""
    T, t, s = abar
    on_line = [sqrt(a) * p + sqrt(1 - a) * n for a in (T, t, s)]
    step = iterate_step(t, s, T, m)
    assert step.state * on_line[1] + step.prediction * p + step.anchor * on_line[0] == pytest.approx(
        on_line[2], abs=1e-9
    )
    step = accumulator_step(t, s, T, m)
    y = step.y_accumulator * on_line[1] + step.y_prediction * p
    assert y == pytest.approx(on_line[2], abs=1e-9)
    assert step.prediction * p + step.anchor * on_line[0] + step.accumulator * y == pytest.approx(on_line[2], abs=1e-9)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_ddim_on_gaussian_data_has_its_closed_form(steps):
    """With the exact eps of N(0, v) every DDIM step scales x by a known factor; the product is the result."""
    card = denoiser_card(image=PLANE, clip=False)
    factor, times = 1.0, (*reversed(quadratic_grid(steps)), 0)
    for t, s in itertools.pairwise(times):
        a_t, a_s = ABAR[t], ABAR[s]
        total = a_t * VARIANCE + 1 - a_t
        # p = sqrt(a_t) v x / total and eps = sqrt(1-a_t) x / total
        factor *= (sqrt(a_s * a_t) * VARIANCE + sqrt((1 - a_s) * (1 - a_t))) / total
    program = compile_sample(card, SampleOptions(sampler="ddim", steps=steps))
    result = run(program, card, {"denoiser": gaussian_eps}, seed=3, count=4, dtype=torch.float64)
    noise = torch.from_numpy(normal([3] * 4, range(4), [0] * 4, 64)).double().reshape(4, 1, 8, 8)
    assert torch.allclose(result.state, factor * noise, rtol=1e-6, atol=1e-9)


def test_many_ddim_steps_give_the_data_variance():
    """With exact eps the probability flow ends at the data's standard deviation; error falls with the steps."""
    card = denoiser_card(image=PLANE, clip=False)
    deviations = [
        float(draw(card, gaussian_eps, count=200, sampler="ddim", steps=t, spacing="linear").std()) for t in (10, 100)
    ]
    assert abs(deviations[1] - sqrt(VARIANCE)) < 0.03
    assert abs(deviations[1] - sqrt(VARIANCE)) < abs(deviations[0] - sqrt(VARIANCE))


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_stochastic_form_has_the_variance_of_its_recursion(eta):
    """With eta (28) each step is x_s = k x_t + sigma n with known k; the end has the variance of that recursion."""
    steps, variance, count = 20, 1.0, 300
    times = (*reversed(quadratic_grid(steps)), 0)
    for t, s in itertools.pairwise(times):
        a_t, a_s = ABAR[t], ABAR[s]
        sigma = eta * sqrt((1 - a_s) / (1 - a_t) * (1 - a_t / a_s))
        k = sqrt(a_s * a_t) * VARIANCE + sqrt((1 - a_s - sigma**2) * (1 - a_t))
        variance = (k / (a_t * VARIANCE + 1 - a_t)) ** 2 * variance + sigma**2
    values = draw(
        denoiser_card(image=PLANE, clip=False), gaussian_eps, count=count, sampler="ddim", steps=steps, eta=eta
    )
    assert float(values.var()) == pytest.approx(variance, rel=5 * sqrt(2 / (count * 64)))


def test_clipping_acts_through_the_prediction():
    """With the clip on no prediction of a wild network leaves [-1, 1]; with it off they do, but not the last one."""
    wild = lambda **inputs: (inputs["sample"] * -3.0,)  # noqa: E731
    for card in (denoiser_card(), denoiser_card(clip=False)):
        program = compile_sample(card, SampleOptions(sampler="iddim", steps=5))
        result = run(program, card, {"denoiser": wild}, seed=11, count=3, keep_trace=True)
        *before, last = [float(preview.abs().max()) for preview in result.previews]
        assert (max(before) <= 1.0) == card.sampling.clip
        assert last == float(result.state.abs().max()) == 1.0


def test_m_per_step_is_used_step_by_step():
    """A list of m with one value a step equals the one value where they agree, and differs where not."""
    card = denoiser_card()
    same = draw(card, sampler="iddim", steps=5, m=(0.4,) * 5)
    assert torch.equal(same, draw(card, sampler="iddim", steps=5, m=(0.4,)))
    assert not torch.equal(same, draw(card, sampler="iddim", steps=5, m=(0.4, 0.4, 0.9, 0.4, 0.4)))


def test_guidance_combines_two_rows():
    """(1+w) eps(x, c) - w eps(x, null), at twice the NFE; w = 0 costs one row and changes nothing."""
    card = denoiser_card(image=PLANE, clip=False)

    def labelled(sample, time, label):
        return (label.double().reshape(-1, 1, 1, 1).expand_as(sample),)

    def combined(sample, time, label):
        return ((1 + 1.5) * label.double().reshape(-1, 1, 1, 1).expand_as(sample) - 1.5 * 10.0,)

    guided = draw(card, labelled, labels=[4, 5, 6], sampler="iddim", steps=4, guidance=1.5)
    assert torch.allclose(guided, draw(card, combined, labels=[4, 5, 6], sampler="iddim", steps=4), atol=1e-9)
    assert compile_sample(card, SampleOptions(steps=4, guidance=1.5)).nfe == 8
    assert compile_sample(card, SampleOptions(steps=4, guidance=0.0)).nfe == 4


def test_vdrme_step_is_equation_22():
    """One VDRME step equals (22), and (15) with the ratio of cumulative products (SPEC 3)."""
    card = vdrme_card(clip=False, clean_end=False)
    program = compile_sample(card, SampleOptions())
    grid = card.sampling.grids["4"]
    rng = np.random.default_rng(0)
    for line, t, s in zip(program.lines, grid, grid[1:], strict=False):
        update = line.updates[0].rule
        assert isinstance(update, EnsembleUpdate)
        x, eps = rng.normal(size=2)
        a_t, a_s = ABAR[t + 1], ABAR[s + 1]
        p = update.p_state * x + update.p_output * eps
        ours = update.state * x + update.prediction * p
        eq22 = sqrt(a_s) * (x - sqrt(1 - a_t) * eps) / sqrt(a_t) + sqrt(1 - a_s) * eps
        eq15 = (x - sqrt(1 - a_t) * eps) / sqrt(a_t / a_s) + sqrt(1 - a_s) * eps
        assert ours == pytest.approx(eq22, rel=1e-9)
        assert ours == pytest.approx(eq15, rel=1e-9)
        assert line.scalars == {"time": float(t), "target_time": float(s)}
        assert line.latent is not None


def test_vdrme_clean_end_emits_the_clean_prediction():
    """With abar = 1 at t_0 the last step returns p; without it noise of std 0.01 is kept."""
    clean, noisy = (
        compile_sample(vdrme_card(clean_end=flag), SampleOptions()).lines[-1].updates[0].rule for flag in (True, False)
    )
    assert (clean.state, clean.prediction) == (0.0, 1.0)
    assert noisy.state != 0.0


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_parametrisations_recover_the_clean_image(prediction):
    """From the exact output of each parametrisation the clean image comes back."""
    abar, x0, eps = 0.37, 0.8, -1.1
    x = sqrt(abar) * x0 + sqrt(1 - abar) * eps
    output = {"eps": eps, "x0": x0, "v": sqrt(abar) * eps - sqrt(1 - abar) * x0}[prediction]
    of_state, of_output = clean_prediction(prediction, abar)
    assert of_state * x + of_output * output == pytest.approx(x0, abs=1e-12)


SHOWN = {
    f"{card.name} {row.setting}": (card, row.options)
    for card in (load_checkpoint(path.parent) for path in sorted(ZOO.glob("*/checkpoint.json")))
    for row in rows_of(card)
}


def test_every_sampler_but_custom_and_langevin_is_shown_by_a_shipped_model():
    """The programs below cover the registry; these two are covered by tests of their own."""
    assert {options.sampler for _, options in SHOWN.values()} == set(SAMPLERS) - {"custom", "langevin"}


@pytest.mark.parametrize("name", SHOWN)
def test_no_two_draws_of_a_program_are_the_same(name):
    """Start, latents and noise of every register have draw numbers of their own, and coefficients are finite."""
    program = compile_sample(*SHOWN[name])
    draws = [start_draw(index) for index in range(1 + len(program.registers))]
    for line in program.lines:
        draws += [line.latent, *(update.noise for update in line.updates), *(u.decision for u in line.updates)]
        for update in line.updates:
            limits = [value for value in update.coefficients if not np.isinf(value)]
            assert np.isfinite(limits).all()
    taken = [draw for draw in draws if draw is not None]
    assert len(taken) == len(set(taken))


@settings(max_examples=200, deadline=None)
@given(
    sampler=st.sampled_from(["ddim", "iddim", "radical"]),
    steps=st.integers(-3, 140),
    m=st.lists(st.floats(allow_nan=True), max_size=3),
    eta=st.none() | st.floats(allow_nan=True),
    guidance=st.none() | st.floats(allow_nan=True),
    spacing=st.sampled_from([None, "linear", "quadratic", "x"]),
)
def test_any_options_compile_to_finite_coefficients_or_name_the_option(sampler, steps, m, eta, guidance, spacing):
    """Arbitrary options either compile to finite coefficients or raise an error that names one of them."""
    options = SampleOptions(sampler=sampler, steps=steps, m=tuple(m), eta=eta, guidance=guidance, spacing=spacing)
    try:
        program = compile_sample(denoiser_card(), options)
    except (OptionError, UnsupportedError) as error:
        assert error.field in ("sampler", "steps", "m", "eta", "guidance", "spacing")
        assert str(error).startswith(error.field)
    else:
        assert all(np.isfinite(row).all() for row in (line.updates[0].coefficients for line in program.lines))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"sampler": "nope"}, "sampler"),
        ({"steps": 0}, "steps"),
        ({"steps": 101}, "steps"),
        ({"sampler": "iddim", "m": (2.0,)}, "m"),
        ({"sampler": "iddim", "m": (float("nan"),)}, "m"),
        ({"sampler": "iddim", "m": (0.5, 0.5)}, "m"),
        ({"sampler": "iddim", "form": "other"}, "form"),
        ({"eta": 1.5}, "eta"),
        ({"guidance": -0.1}, "guidance"),
        ({"temperature": -1.0}, "temperature"),
        ({"spacing": "cubic"}, "spacing"),
        ({"steps": 64, "spacing": "quadratic"}, "spacing"),
        ({"sampler": "custom", "steps": 2}, "weights"),
        ({"sampler": "custom", "steps": 2, "weights": ((1.0,), (1.0,))}, "weights"),
        ({"sampler": "custom", "steps": 1, "weights": ((-1.0,),)}, "weights"),
        ({"sampler": "custom", "steps": 1, "weights": ((0.0,),)}, "weights"),
        ({"sampler": "custom", "steps": 1, "weights": ((float("inf"),),)}, "weights"),
    ],
)
def test_options_out_of_range_name_the_option(options, field):
    """Each bad option is an OptionError with the option's name."""
    with pytest.raises(OptionError) as caught:
        compile_sample(denoiser_card(), SampleOptions(**options))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("card", "options", "field"),
    [
        (denoiser_card(), {"sampler": "vdrme"}, "sampler"),
        (denoiser_card(), {"sampler": "ddim", "m": (0.5,)}, "m"),
        (denoiser_card(), {"sampler": "iddim", "form": "accumulator", "eta": 0.5}, "eta"),
        (vdrme_card(), {"guidance": 1.0}, "guidance"),
        (energy_card(), {"eta": 1.0}, "eta"),
    ],
)
def test_what_a_model_cannot_do_is_told_apart(card, options, field):
    """An option that the model or the sampler does not have is UnsupportedError, not OptionError."""
    with pytest.raises(UnsupportedError) as caught:
        compile_sample(card, SampleOptions(**options))
    assert caught.value.field == field


def test_weights_whose_sum_overflows_are_told_so():
    """Each is finite, not negative and more than nothing: what is wrong is their sum."""
    options = SampleOptions(sampler="custom", steps=2, weights=((1.0,), (1e308, 1e308)))
    with pytest.raises(OptionError, match="weights: the sum of row 1"):
        compile_sample(denoiser_card(), options)
