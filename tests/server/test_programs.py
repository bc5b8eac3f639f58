"""The programs that a model keeps: bounded by their lines, and gone with the model."""

from __future__ import annotations

import asyncio
import threading

import pytest

from models.card import ModelCard
from models.program import Program
from models.samplers import OptionError, SampleOptions
from server import programs
from server.programs import ProgramCache
from tests.models.cards import denoiser_card, energy_card


def test_the_same_options_get_the_same_program():
    """A program is compiled once for the options, and once for the scale."""
    samples, scores = ProgramCache(denoiser_card()), ProgramCache(energy_card())
    assert samples.sample(SampleOptions(steps=3)) is samples.sample(SampleOptions(steps=3))
    assert samples.sample(SampleOptions(steps=3)) is not samples.sample(SampleOptions(steps=4))
    scale = energy_card().energy.scales[0]
    assert scores.score(scale) is scores.score(scale)


def test_the_lines_kept_are_bounded_and_the_least_recent_go():
    """However many programs are asked for, the lines kept stay within the bound; what was used last stays."""
    cache = ProgramCache(denoiser_card(), max_lines=20)
    first = cache.sample(SampleOptions(steps=8))
    second = cache.sample(SampleOptions(steps=9))
    assert cache.sample(SampleOptions(steps=8)) is first
    cache.sample(SampleOptions(steps=10))
    assert cache.lines == 18
    assert cache.sample(SampleOptions(steps=8)) is first
    assert cache.sample(SampleOptions(steps=9)) is not second
    for steps in range(1, 60):
        cache.sample(SampleOptions(steps=steps))
        assert cache.lines <= 20


def test_a_program_above_the_bound_is_not_kept():
    """One program longer than the bound is made and forgotten."""
    cache = ProgramCache(energy_card(), max_lines=20)
    assert len(cache.sample(SampleOptions(steps=30)).lines) == 30
    assert cache.lines == 0


def test_custom_programs_are_not_kept():
    """Options with weights may be large and hardly come twice."""
    cache = ProgramCache(denoiser_card())
    options = SampleOptions(sampler="custom", steps=2, weights=((1.0,), (1.0, 1.0)))
    assert cache.sample(options) == cache.sample(options)
    assert cache.lines == 0


def test_refused_options_leave_nothing_behind():
    """An error is not kept, and costs no room."""
    cache = ProgramCache(denoiser_card())
    with pytest.raises(OptionError, match="steps"):
        cache.sample(SampleOptions(steps=0))
    assert cache.lines == 0


def test_a_program_compiled_ahead_is_the_one_that_is_found():
    """On another thread, however many ask for it at a time; what is refused is refused there, too."""
    cache = ProgramCache(energy_card())
    options = SampleOptions(steps=700)
    threads: list[int] = []
    compiled = programs.compile_sample

    def compile_(card: ModelCard, options: SampleOptions) -> Program:
        threads.append(threading.get_ident())
        return compiled(card, options)

    async def ahead() -> None:
        await asyncio.gather(*(cache.compile_ahead(options) for _ in range(3)))
        with pytest.raises(OptionError, match="steps"):
            await cache.compile_ahead(SampleOptions(steps=10**6))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "compile_sample", compile_)
        asyncio.run(ahead())
        assert len(cache.sample(options).lines) == 700
    assert len(threads) == 2, "once, and the one that is refused"
    assert threading.get_ident() not in threads
