"""Samplers: pure functions from a model card and options to a program, each named after its method.

To add a method: one module here with its equations, one entry in `SAMPLERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..bundle import ModelCard
from ..program import Program
from .ancestral import compile_ancestral
from .ensemble import compile_custom, compile_ddim, compile_iddim, compile_radical
from .langevin import compile_langevin
from .options import OptionError, SampleOptions, UnsupportedError
from .score import compile_score, find_scale
from .vdrme import compile_vdrme

__all__ = [
    "SAMPLERS",
    "OptionError",
    "SampleOptions",
    "Sampler",
    "UnsupportedError",
    "available_samplers",
    "compile_sample",
    "compile_score",
    "find_scale",
]


@dataclass(frozen=True, slots=True)
class Sampler:
    """A method: its compiler, and the options that it takes besides `sampler`, `steps` and `temperature`."""

    compile: Callable[[ModelCard, SampleOptions], Program]
    options: frozenset[str]
    uses_labels: bool = True


_COMMON = frozenset({"sampler", "steps", "temperature"})

SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler(compile_ddim, frozenset({"spacing", "eta", "guidance"})),
    "iddim": Sampler(compile_iddim, frozenset({"spacing", "eta", "guidance", "m", "form"})),
    "radical": Sampler(compile_radical, frozenset({"spacing", "eta", "guidance"})),
    "custom": Sampler(compile_custom, frozenset({"spacing", "guidance", "weights"})),
    "ancestral": Sampler(compile_ancestral, frozenset({"eta", "guidance"})),
    "vdrme": Sampler(compile_vdrme, frozenset()),
    "langevin": Sampler(compile_langevin, frozenset({"step_size"}), uses_labels=False),
}


def available_samplers(card: ModelCard) -> tuple[str, ...]:
    """The samplers of a model, its default first."""
    names = card.sampling.samplers if card.sampling is not None else ()
    if card.langevin is not None and "langevin" not in names:
        names = (*names, "langevin")
    return names


def compile_sample(card: ModelCard, options: SampleOptions) -> Program:
    """Compile a sample request into a program.

    Raises:
        OptionError: an option is out of range; names it.
        UnsupportedError: the model or the sampler does not have it.
    """
    names = available_samplers(card)
    if not names:
        raise UnsupportedError("model", f"{card.name} draws no samples")
    name = options.sampler or names[0]
    if name not in SAMPLERS:
        raise OptionError("sampler", f"must be one of {', '.join(SAMPLERS)}, got {name!r}")
    if name not in names:
        raise UnsupportedError("sampler", f"{card.name} offers {', '.join(names)}, not {name}")
    sampler = SAMPLERS[name]
    for option in options.given():
        if option not in _COMMON and option not in sampler.options:
            raise UnsupportedError(option, f"sampler {name} does not take it")
    return sampler.compile(card, replace(options, sampler=name))
