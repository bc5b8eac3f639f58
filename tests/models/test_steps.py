"""How a program counts its steps: as whoever asks for them."""

from __future__ import annotations

import pytest

from models.samplers import SampleOptions, compile_refine, compile_sample

from .zoo import CARDS, REFINED, SAMPLED


@pytest.mark.parametrize(("model", "sampler"), [pair for pair in SAMPLED if pair[1] != "custom"])
def test_what_the_default_is_can_be_asked_for(model: str, sampler: str):
    """The steps of the default program give that program, whatever networks it evaluates before and after them."""
    default = compile_sample(CARDS[model], SampleOptions(sampler=sampler))
    assert compile_sample(CARDS[model], SampleOptions(sampler=sampler, steps=default.steps)) == default


@pytest.mark.parametrize("metropolis", [0.0, 1.0])
@pytest.mark.parametrize(("model", "method"), REFINED)
def test_a_refinement_has_the_steps_that_were_asked_for(model: str, method: str, metropolis: float):
    """Not those that score, nor the one that judges the last proposal of MALA."""
    parameters = (("metropolis", (metropolis,)),) if method == "langevin" else ()
    assert compile_refine(CARDS[model], SampleOptions(sampler=method, steps=3, parameters=parameters)).steps == 3


@pytest.mark.parametrize(("stage", "metropolis"), [(1, 0.0), (1, 1.0), (2, 0.0)])
def test_hat_counts_the_steps_of_its_chain(stage: int, metropolis: float):
    """Not G(z) before it, nor the image after it."""
    parameters = (("stage", (float(stage),)), *((("metropolis", (metropolis,)),) if metropolis else ()))
    program = compile_sample(CARDS["digits-hat"], SampleOptions(sampler="hat", steps=4, parameters=parameters))
    assert program.steps == 4
