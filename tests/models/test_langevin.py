"""Langevin dynamics against its closed forms (SPEC 7)."""

from __future__ import annotations

import pytest
import torch

from kernels.philox import normal
from models.run import energy_gradient, run
from models.samplers import OptionError, SampleOptions, UnsupportedError, compile_refine, compile_sample
from models.samplers.langevin import from_epsilon, from_independent, langevin_step

from .cards import PLANE, energy_card


class Quadratic(torch.nn.Module):
    """U = |x|^2 / 2."""

    def forward(self, sample, time):
        return sample.square().flatten(1).sum(1) / 2


def chain(steps: int, count: int, **options) -> torch.Tensor:
    card = energy_card(image=PLANE, **{k: options.pop(k) for k in ("max_displacement",) if k in options})
    program = compile_sample(card, SampleOptions(steps=steps, **options))
    module = Quadratic()
    networks = {"energy_gradient": lambda **inputs: energy_gradient(module, ("sample",), **inputs)}
    return run(program, card, networks, seed=5, count=count, dtype=torch.float64).state


def start(count: int) -> torch.Tensor:
    return torch.from_numpy(normal([5] * count, range(count), [0] * count, 64)).double().reshape(count, 1, 8, 8)


@pytest.mark.parametrize("step_size", [0.05, 0.5, 1.0])
def test_stationary_variance(step_size):
    """U = x^2/2 at temperature 1 has stationary variance 1/(1 - s/2)."""
    values = chain(200, 200, step_size=step_size)
    expected = 1 / (1 - step_size / 2)
    # 12,800 independent values: the variance's standard error is 1.25 %.
    assert float(values.var()) == pytest.approx(expected, rel=5 * 0.0125)


def test_unstable_from_two_on():
    """Beyond s = 2 the chain diverges."""
    assert chain(100, 2, step_size=2.2).abs().max() > 1e3


@pytest.mark.parametrize("temperature", [0.1, 4.0])
def test_temperature_scales_the_variance(temperature):
    """At temperature tau the target is N(0, tau); the step enters as s/tau."""
    step = 0.1 * temperature
    expected = temperature / (1 - step / (2 * temperature))
    assert float(chain(300, 200, step_size=step, temperature=temperature).var()) == pytest.approx(expected, rel=0.0625)


def test_temperature_zero_is_gradient_descent():
    """Without temperature each step multiplies x by exactly 1 - s, with no noise."""
    assert torch.allclose(chain(7, 3, step_size=0.2, temperature=0.0), start(3) * 0.8**7, rtol=1e-9)


def test_displacement_is_clipped_by_its_norm():
    """A gradient step longer than the limit keeps its direction and gets the limit as its norm."""
    x = start(3)
    moved = chain(1, 3, step_size=0.5, temperature=0.0, max_displacement=0.25)
    assert torch.allclose((x - moved).flatten(1).norm(dim=1), torch.full((3,), 0.25, dtype=torch.float64), rtol=1e-6)
    assert torch.nn.functional.cosine_similarity((x - moved).flatten(1), x.flatten(1)).min() > 1 - 1e-9


def test_the_box_holds():
    """With the box on the state never leaves the image's range."""
    card = energy_card(box=True)
    networks = {"energy_gradient": lambda **inputs: energy_gradient(Quadratic(), ("sample",), **inputs)}
    program = compile_sample(card, SampleOptions(steps=5, step_size=1.0))
    result = run(program, card, networks, seed=5, count=5, keep_trace=True)
    assert torch.stack(result.trace).abs().max() <= 1.0


@pytest.mark.parametrize("parameters", [(), (("low", (-3.0,)),), (("high", (2.0,)), ("low", (-0.5,)))])
def test_the_last_state_is_an_image(parameters):
    """Without a box, or in a wider one, a chain goes where it goes, and what it gives is clipped to the range."""
    card = energy_card(box=bool(parameters))
    networks = {"energy_gradient": lambda **inputs: energy_gradient(Quadratic(), ("sample",), **inputs)}
    program = compile_sample(card, SampleOptions(steps=6, step_size=0.5, parameters=parameters))
    result = run(program, card, networks, seed=5, count=20, keep_trace=True)
    *_, before, last = result.trace
    assert before.abs().max() > 1.1
    assert last.min() == max(-1.0, dict(parameters).get("low", (-1.0,))[0])
    assert last.max() == 1.0
    assert torch.equal(last, result.state)


def test_other_forms_map_to_one():
    """(e^2/2, e) and independent (a, sd) are the same update as (s, temperature)."""
    epsilon = 0.3
    step = langevin_step(from_epsilon(epsilon), 1.0)
    assert (-step.gradient, step.noise) == pytest.approx((epsilon**2 / 2, epsilon))
    s, temperature = from_independent(0.02, 0.1)
    step = langevin_step(s, temperature)
    assert (-step.gradient, step.noise) == pytest.approx((0.02, 0.1))


def test_a_long_chain_holds_its_coefficients_once():
    """Steps share one read-only row of coefficients, all but the last: 10,000 would be most of the program."""
    program = compile_sample(energy_card(), SampleOptions(steps=10_000))
    assert len(program.lines) == 10_000
    assert len({id(line.updates[0].coefficients) for line in program.lines}) == 2
    assert not program.lines[0].updates[0].coefficients.flags.writeable


@pytest.mark.parametrize(
    ("option", "value"), [("steps", 0), ("steps", 10**6), ("step_size", 0.0), ("temperature", -1.0)]
)
def test_bad_options_name_themselves(option, value):
    """Options out of range are refused by name."""
    with pytest.raises(OptionError) as caught:
        compile_sample(energy_card(), SampleOptions(**{option: value}))
    assert caught.value.field == option


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"step_size": 1e300}, "step_size"),
        ({"step_size": 8.9e307}, "step_size"),
        ({"temperature": 1e-300}, "temperature"),
        ({"step_size": 1e35}, "step_size"),
        ({"step_size": 1e35, "temperature": 0.0}, "step_size"),
        ({"step_size": 1e-3, "temperature": 1e-300}, "temperature"),
        ({"parameters": (("step_sizes", (1e40,)),)}, "step_sizes"),
        ({"parameters": (("temperatures", (1e-300,)),)}, "temperatures"),
        ({"step_size": 1e40, "parameters": (("metropolis", (1.0,)),)}, "step_size"),
        ({"temperature": 1e-300, "parameters": (("metropolis", (1.0,)),)}, "temperature"),
        ({"steps": 3, "parameters": (("final_step_size", (1e40,)),)}, "final_step_size"),
    ],
)
def test_steps_that_float32_cannot_hold_are_refused(options, field):
    """They would be infinite in the kernel, and the box would turn them into pictures."""
    with pytest.raises(OptionError, match="float32") as caught:
        compile_sample(energy_card(), SampleOptions(**{"steps": 1, **options}))
    assert caught.value.field == field


def test_without_a_bound_a_huge_step_is_taken_as_it_is():
    """Nothing of the bound's arithmetic, which would overflow, touches a chain that has none."""
    card = energy_card(image=PLANE, max_displacement=None)
    program = compile_sample(card, SampleOptions(steps=1, step_size=1e25, temperature=0.0))
    networks = {"energy_gradient": lambda **inputs: energy_gradient(Quadratic(), ("sample",), **inputs)}
    state = run(program, card, networks, seed=5, count=2, dtype=torch.float32).state
    assert torch.allclose(state, -1e25 * start(2).float(), rtol=1e-5)


def steps_of(options: SampleOptions) -> list[float]:
    return [-line.updates[0].rule.gradient for line in compile_sample(energy_card(), options).lines]


def test_step_sizes_go_down_geometrically_to_the_last():
    """final_step_size gives a schedule with one ratio between neighbours, from step_size to it."""
    found = steps_of(SampleOptions(steps=5, step_size=0.8, parameters=(("final_step_size", (0.05,)),)))
    assert found == pytest.approx([0.8, 0.4, 0.2, 0.1, 0.05])


def test_every_step_can_have_its_own_size_and_temperature():
    """A chain with listed step sizes and temperatures is the product of its steps (temperature 0: x (1 - s))."""
    parameters = (("step_sizes", (0.1, 0.5, 0.25)), ("temperatures", (0.0, 0.0, 0.0)))
    program = compile_sample(energy_card(image=PLANE), SampleOptions(steps=3, parameters=parameters))
    networks = {"energy_gradient": lambda **inputs: energy_gradient(Quadratic(), ("sample",), **inputs)}
    state = run(program, energy_card(), networks, seed=5, count=3, dtype=torch.float64).state
    assert torch.allclose(state, start(3) * 0.9 * 0.5 * 0.75, rtol=1e-9)


def test_a_caller_may_set_the_clip_and_the_box():
    """max_displacement, low and high of the request hold in place of the model's."""
    parameters = (("max_displacement", (0.25,)), ("temperatures", (0.0,)))
    clipped = compile_sample(energy_card(), SampleOptions(steps=1, step_size=0.5, parameters=parameters))
    assert clipped.lines[0].updates[0].rule.max_displacement == 0.25
    boxed = compile_sample(energy_card(), SampleOptions(steps=2, parameters=(("high", (0.5,)), ("low", (-0.5,)))))
    networks = {"energy_gradient": lambda **inputs: energy_gradient(Quadratic(), ("sample",), **inputs)}
    assert float(run(boxed, energy_card(), networks, seed=1, count=4).state.abs().max()) <= 0.5


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"step_sizes": (0.1, 0.2)}, "step_sizes"),
        ({"step_sizes": (0.1, -0.2, 0.1)}, "step_sizes"),
        ({"step_sizes": (0.1, 0.2, 0.1), "final_step_size": (0.1,)}, "step_sizes"),
        ({"final_step_size": (0.0,)}, "final_step_size"),
        ({"temperatures": (1.0,)}, "temperatures"),
        ({"temperatures": (1.0, -1.0, 1.0)}, "temperatures"),
        ({"low": (2.0,), "high": (1.0,)}, "low"),
        ({"low": (2.0,), "high": (3.0,)}, "low"),
        ({"high": (-1.0,)}, "high"),
        ({"low": (1.0,), "metropolis": (1.0,)}, "low"),
        ({"max_displacement": (0.0,)}, "max_displacement"),
        ({"metropolis": (0.5,)}, "metropolis"),
        ({"metropolis": ()}, "metropolis"),
        ({"high": (float("nan"),)}, "high"),
    ],
)
def test_bad_chain_options_name_themselves(parameters, field):
    """A wrong option of the chain is refused by its name."""
    with pytest.raises(OptionError) as caught:
        compile_sample(energy_card(), SampleOptions(steps=3, parameters=tuple(sorted(parameters.items()))))
    assert caught.value.field == field


@pytest.mark.parametrize("temperature", [0.5, float("nan")])
def test_two_options_that_say_the_same_are_refused(temperature):
    """A temperature beside one for each step would be read by nobody, as a step size is refused beside step_sizes."""
    parameters = (("temperatures", (1.0, 0.5)),)
    with pytest.raises(OptionError, match="leave out temperature") as caught:
        compile_sample(energy_card(), SampleOptions(steps=2, temperature=temperature, parameters=parameters))
    assert caught.value.field == "temperatures"


def test_a_single_step_has_no_final_step_size():
    """It would have to be the first one too."""
    with pytest.raises(OptionError, match="final_step_size"):
        compile_sample(energy_card(), SampleOptions(steps=1, parameters=(("final_step_size", (0.1,)),)))


def test_an_option_that_no_sampler_has_is_refused():
    """Unknown names are errors and not ignored."""
    with pytest.raises(UnsupportedError, match="colour"):
        compile_sample(energy_card(), SampleOptions(parameters=(("colour", (1.0,)),)))


def test_an_option_of_its_own_is_no_parameter():
    """A step size among the parameters would be read by nobody, so it is refused."""
    with pytest.raises(OptionError, match="step_size"):
        compile_sample(energy_card(), SampleOptions(parameters=(("step_size", (0.1,)),)))


def test_a_refinement_scores_before_and_after():
    """Refine starts from the image, and the two scores are the energies of what went in and what came out."""
    card = energy_card(image=PLANE)
    program = compile_refine(card, SampleOptions(steps=4, step_size=0.1, temperature=0.0))
    module = Quadratic()
    networks = {
        "energy": lambda **inputs: (module(**inputs),),
        "energy_gradient": lambda **inputs: energy_gradient(module, ("sample",), **inputs),
    }
    images = start(3)
    result = run(program, card, networks, seed=0, count=3, images=images, dtype=torch.float64)
    assert torch.allclose(result.state, images * 0.9**4)
    assert torch.allclose(result.scores[0], module(images, None))
    assert torch.allclose(result.scores[1], module(result.state, None))
    assert program.gradient_passes == 4
    assert program.nfe == 6


def test_the_energy_afterwards_is_that_of_the_clipped_image():
    """Where the last state is clipped, its energy is taken of what the caller gets."""
    card, module = energy_card(), Quadratic()
    program = compile_refine(card, SampleOptions(steps=4, step_size=0.5))
    networks = {
        "energy": lambda **inputs: (module(**inputs),),
        "energy_gradient": lambda **inputs: energy_gradient(module, ("sample",), **inputs),
    }
    result = run(program, card, networks, seed=0, count=3, images=start(3).clamp(-1.0, 1.0), dtype=torch.float64)
    assert result.state.abs().max() == 1.0
    assert torch.allclose(result.scores[1], module(result.state, None))
