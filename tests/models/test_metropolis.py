"""Metropolis-adjusted Langevin dynamics (MALA, SPEC 7): the law is exact, and the served kernel is the plain loop."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from kernels import cpu
from kernels.philox import normal
from models.card import ModelCard
from models.program import Program
from models.run import energy_gradient, run
from models.samplers import OptionError, SampleOptions, UnsupportedError, compile_refine, compile_sample

from .cards import energy_card


class Quadratic(torch.nn.Module):
    """U = sum of x^2 / 2."""

    def forward(self, sample, time):
        return sample.square().flatten(1).sum(1) / 2


def chain(count: int, *, steps: int, step_size: float, seed: int = 5, **parameters: float) -> torch.Tensor:
    options = {"metropolis": (1.0,), **{name: (value,) for name, value in parameters.items()}}
    program = compile_sample(
        energy_card(), SampleOptions(steps=steps, step_size=step_size, parameters=tuple(sorted(options.items())))
    )
    assert program.nfe == program.gradient_passes == steps + 1
    networks = {"energy_gradient": lambda **inputs: energy_gradient(Quadratic(), ("sample",), **inputs)}
    return run(program, energy_card(), networks, seed=seed, count=count, dtype=torch.float64).state


def test_the_stationary_variance_is_exact():
    """With a step at which the plain chain has variance 1.18, MALA keeps the target's 1."""
    values = chain(300, steps=60, step_size=0.3)
    # 19,200 values, each from a chain of its own element: the standard error of the variance is 1%.
    assert float(values.var()) == pytest.approx(1.0, abs=0.04)
    assert float(values.mean()) == pytest.approx(0.0, abs=0.04)


def test_a_start_far_out_of_the_law_gets_there():
    """Started from N(0, 4 I) the chain comes to the target: proposals are judged and not all taken."""
    card, far = energy_card(), SampleOptions(steps=150, step_size=0.2, parameters=(("metropolis", (1.0,)),))
    program = compile_sample(card, far)
    networks = {"energy_gradient": lambda **inputs: energy_gradient(Quadratic(), ("sample",), **inputs)}
    wide = replace(program, noise_scale=2.0)
    values = run(wide, card, networks, seed=9, count=200, dtype=torch.float64).state
    assert float(values.var()) == pytest.approx(1.0, abs=0.05)


def test_the_temperature_is_that_of_the_law():
    """At temperature tau the stationary variance is tau."""
    card = energy_card()
    options = SampleOptions(steps=80, step_size=0.05, temperature=0.25, parameters=(("metropolis", (1.0,)),))
    networks = {"energy_gradient": lambda **inputs: energy_gradient(Quadratic(), ("sample",), **inputs)}
    values = run(compile_sample(card, options), card, networks, seed=2, count=200, dtype=torch.float64).state
    assert float(values.var()) == pytest.approx(0.25, abs=0.015)


def test_proposals_out_of_the_box_are_refused():
    """A chain that starts inside the box never leaves it, and still moves; without the box it would leave."""
    card = energy_card()
    networks = {"energy_gradient": lambda **inputs: energy_gradient(Quadratic(), ("sample",), **inputs)}

    def end(*box: tuple[str, tuple[float, ...]]) -> torch.Tensor:
        options = SampleOptions(steps=200, step_size=0.01, parameters=(*box, ("metropolis", (1.0,))))
        inside = replace(compile_sample(card, options), noise_scale=0.02)
        return run(inside, card, networks, seed=3, count=20, dtype=torch.float64).state

    boxed = end(("high", (1.0,)), ("low", (-1.0,)))
    assert 0.1 < float(boxed.abs().max()) <= 1.0
    assert float(end().abs().max()) > 1.0


class Narrow(torch.nn.Module):
    """U of data within [-1, 1]: in each element N(0, 0.3^2)."""

    def forward(self, sample, time):
        return sample.square().flatten(1).sum(1) / (2.0 * 0.3**2)


def ratio_of_moves(program: Program, card: ModelCard, images: torch.Tensor | None = None) -> float:
    """The share of proposals that 20 chains took."""
    module = Narrow()
    networks = {
        "energy": lambda **inputs: (module(**inputs),),
        "energy_gradient": lambda **inputs: energy_gradient(module, ("sample",), **inputs),
    }
    result = run(program, card, networks, seed=4, count=20, images=images, keep_trace=True)
    places = [place for place in result.previews if place is not None]
    return float(np.mean([float((a != b).flatten(1).any(1).double().mean()) for a, b in pairwise(places)]))


MALA = (("metropolis", (1.0,)),)
BOX = (("high", (1.0,)), ("low", (-1.0,)))


def test_without_a_box_of_the_caller_s_a_chain_moves():
    """From N(0, I), which lies out of the range of images, and from images on its edge, though the model has a box."""
    card = energy_card(box=True, step_size=0.01)
    edge = torch.ones(20, 1, 8, 8)
    assert ratio_of_moves(compile_sample(card, SampleOptions(parameters=MALA)), card) > 0.5
    assert ratio_of_moves(compile_refine(card, SampleOptions(parameters=MALA)), card, edge) > 0.5


def test_a_chain_that_starts_outside_of_the_caller_s_box_stays_there():
    """What the documents warn of: in 64 dimensions no proposal from outside lies inside."""
    card = energy_card(step_size=0.01)
    program = compile_sample(card, SampleOptions(steps=10, parameters=(*BOX, *MALA)))
    assert ratio_of_moves(program, card) == 0.0
    inside = replace(program, noise_scale=0.2)
    assert ratio_of_moves(inside, card) > 0.5


def metropolis_step(*arguments: torch.Tensor, **keywords: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The served step, on the tensors' own memory, as it works in place."""
    found = cpu.metropolis_step(*(t.numpy() for t in arguments), **{name: t.numpy() for name, t in keywords.items()})
    return tuple(torch.from_numpy(array) for array in found)


def test_the_kernel_is_the_definition_row_by_row():
    """The fused step takes and refuses the same proposals as the formula written out in float64, for mixed rows."""
    rows, elements = 64, 5
    values = torch.from_numpy(normal([1] * 6, range(6), [0] * 6, rows * elements).copy()).reshape(6, rows, elements)
    state, place, slope, gradient = values[0] * 0.5, values[1] * 0.5, values[2] * 0.3, values[3] * 0.3
    level, energy, decision = (values[i][:, 0].contiguous() for i in (4, 5, 3))
    energy += 1.0  # proposals are mostly worse
    noise = values[5].clone()
    coefficients = torch.tensor([[1.3, 0.2, 0.9, 0.1, -2.0, 2.0]]).repeat(rows, 1)
    coefficients[::7, 1] = 0.0  # starts
    coefficients[::5, 3] = 0.0  # ends
    before = (state.clone(), place.clone(), slope.clone(), level.clone())
    slots = torch.arange(rows)
    places, levels, norms = metropolis_step(
        state,
        slots,
        energy,
        gradient,
        coefficients,
        place=place,
        slope=slope,
        level=level,
        decision=decision,
        noise=noise,
    )
    taken_count = 0
    for i in range(rows):
        b, a, beta, step, low, high = coefficients[i].double().tolist()
        x1, x0, g0, g1 = (tensor[i].double() for tensor in (before[0], before[1], before[2], gradient))
        forth = (x1 - x0 + a * b * g0).square().sum()
        back = (x0 - x1 + a * b * g1).square().sum()
        ratio = -b * float(energy[i].double() - before[3][i].double()) + float(forth - back) / (4 * a) if a else 0.0
        inside = bool((x1 >= low).all() and (x1 <= high).all())
        taken = not a or (inside and float(torch.special.ndtr(decision[i].double()).log()) < ratio)
        taken_count += taken
        kept, kept_slope = (x1, g1) if taken else (x0, g0)
        assert torch.allclose(places[i].double(), kept)
        assert float(norms[i]) == pytest.approx(float(kept_slope.norm()), rel=1e-6)
        assert float(levels[i]) == pytest.approx(float(energy[i] if taken else before[3][i]))
        wanted = kept - step * beta * kept_slope + (2 * step) ** 0.5 * noise[i].double()
        assert torch.allclose(state[i].double(), wanted, atol=1e-6)
    assert 10 < taken_count < rows - 10


def test_a_row_comes_out_the_same_in_any_company():
    """The bytes of a row do not depend on the rows beside it."""
    rows, elements = 8, 64
    values = torch.from_numpy(normal([3] * 5, range(5), [0] * 5, rows * elements).copy()).reshape(5, rows, elements)
    coefficients = torch.tensor([[1.0, 0.1, 1.0, 0.1, -1e9, 1e9]]).repeat(rows, 1)

    def step(chosen: list[int]) -> torch.Tensor:
        state, place, slope = (values[i][chosen].clone() for i in range(3))
        count = len(chosen)
        metropolis_step(
            state, torch.arange(count), values[3][chosen, 0], values[4][chosen], coefficients[:count],
            place=place, slope=slope, level=values[3][chosen, 1].clone(), decision=values[3][chosen, 2],
            noise=values[0][chosen],
        )  # fmt: skip
        return state

    together = step(list(range(rows)))
    for row in range(rows):
        assert torch.equal(step([row])[0], together[row])


def test_what_has_no_law_is_refused():
    """Temperature 0, and a clip of the proposal, are errors that name the option."""
    with pytest.raises(OptionError, match="temperature"):
        compile_sample(energy_card(), SampleOptions(temperature=0.0, parameters=(("metropolis", (1.0,)),)))
    parameters = (("max_displacement", (1.0,)), ("metropolis", (1.0,)))
    with pytest.raises(UnsupportedError, match="max_displacement"):
        compile_sample(energy_card(), SampleOptions(parameters=parameters))
