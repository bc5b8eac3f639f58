"""Samplers: pure functions from a model card and options to a program, each named after its method.

To add a method: one module here with its equations, and an entry in `SAMPLERS`, `SCORERS` or `REFINERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ..card import ModelCard, ScaleSpec
from ..program import Program
from .ancestral import compile_ancestral
from .ensemble import compile_custom, compile_ddim, compile_iddim, compile_radical
from .gdim import OPTIONS as GDIM_OPTIONS
from .gdim import compile_gdim, score_gdim
from .hat import OPTIONS as HAT_OPTIONS
from .hat import compile_hat, refine_by_transition
from .labels import takes_labels
from .langevin import OPTIONS as LANGEVIN_OPTIONS
from .langevin import compile_langevin
from .latent import OPTIONS as LATENT_OPTIONS
from .latent import compile_latent, score_by_diffusion, score_by_inference
from .options import OptionError, SampleOptions, UnsupportedError
from .refine import refine_by_langevin
from .score import find_scale, score_noised
from .vdrme import compile_vdrme

__all__ = [
    "REFINERS",
    "SAMPLERS",
    "SCORERS",
    "OptionError",
    "SampleOptions",
    "Sampler",
    "UnsupportedError",
    "available_refiners",
    "available_samplers",
    "compile_refine",
    "compile_sample",
    "compile_score",
    "find_scale",
    "takes_labels",
]


@dataclass(frozen=True, slots=True)
class Sampler:
    """A method: its compiler, and the options that it takes besides `sampler`, `steps` and `temperature`.

    shown: the settings that `python -m models quality` measures; one that says nothing of steps at each number of
    steps that the model was trained for. updates: settings that together have every kind of update that it makes.
    """

    compile: Callable[[ModelCard, SampleOptions], Program]
    options: frozenset[str]
    shown: tuple[SampleOptions, ...] = (SampleOptions(),)
    updates: tuple[SampleOptions, ...] = (SampleOptions(),)


_COMMON = frozenset({"sampler", "steps", "temperature"})
_CHAINS = (SampleOptions(), SampleOptions(parameters=(("metropolis", (1.0,)),)))

SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler(
        compile_ddim,
        frozenset({"spacing", "eta", "guidance"}),
        shown=(
            *(SampleOptions(steps=steps) for steps in (4, 8, 10, 20)),
            *(SampleOptions(steps=10, guidance=w) for w in (0.0, 0.5, 1.0, 2.0, 4.0)),
        ),
    ),
    "iddim": Sampler(
        compile_iddim,
        frozenset({"spacing", "eta", "guidance", "m", "form"}),
        shown=tuple(SampleOptions(steps=steps, m=(m,)) for steps, m in ((4, 1.0), (8, 0.8), (10, 0.5), (20, 0.15))),
    ),
    "radical": Sampler(
        compile_radical,
        frozenset({"spacing", "eta", "guidance"}),
        shown=(SampleOptions(steps=4), SampleOptions(steps=8)),
    ),
    "custom": Sampler(compile_custom, frozenset({"spacing", "guidance", "weights"}), shown=()),
    "ancestral": Sampler(compile_ancestral, frozenset({"eta", "guidance"}), shown=(SampleOptions(steps=20),)),
    "gdim": Sampler(
        compile_gdim, GDIM_OPTIONS, shown=tuple(SampleOptions(m=(m,)) for m in (1.0, 0.8, 0.7, 0.6, 0.5, 0.4, 0.2, 0.0))
    ),
    "vdrme": Sampler(compile_vdrme, frozenset()),
    "hat": Sampler(
        compile_hat,
        frozenset({"step_size"}) | HAT_OPTIONS | LANGEVIN_OPTIONS,
        shown=tuple(SampleOptions(parameters=(("stage", (stage,)),)) for stage in (0.0, 1.0, 2.0)),
    ),
    "latent": Sampler(
        compile_latent,
        LATENT_OPTIONS,
        shown=tuple(SampleOptions(parameters=(("langevin_steps", (k,)),)) for k in (0.0, 30.0, 50.0, 100.0)),
    ),
    "langevin": Sampler(compile_langevin, frozenset({"step_size"}) | LANGEVIN_OPTIONS, updates=_CHAINS),
}

REFINERS: dict[str, Sampler] = {
    "transition": Sampler(refine_by_transition, frozenset()),
    "langevin": Sampler(refine_by_langevin, frozenset({"step_size"}) | LANGEVIN_OPTIONS, updates=_CHAINS),
}
"""By name: programs that start from the caller's image."""

SCORERS: dict[str, Callable[[ModelCard, ScaleSpec], Program]] = {
    "noised": score_noised,
    "gdim": score_gdim,
    "latent-inference": score_by_inference,
    "latent-diffusion": score_by_diffusion,
}
"""By a scale's `method`: programs whose energy is the mean of their scoring lines."""


def available_samplers(card: ModelCard) -> tuple[str, ...]:
    """The samplers of a model, its default first."""
    names = card.sampling.samplers if card.sampling is not None else ()
    if card.langevin is not None and "langevin" not in names:
        names = (*names, "langevin")
    return names


def available_refiners(card: ModelCard) -> tuple[str, ...]:
    """How a model refines an image, its default first."""
    return (*card.refiners, *(("langevin",) if card.langevin is not None and "langevin" not in card.refiners else ()))


def compile_sample(card: ModelCard, options: SampleOptions) -> Program:
    """Compile a sample request into a program.

    Raises:
        OptionError: an option is out of range; names it.
        UnsupportedError: the model or the sampler does not have it.
    """
    return _compile("sampler", "draws no samples", SAMPLERS, available_samplers(card), card, options)


def compile_refine(card: ModelCard, options: SampleOptions) -> Program:
    """Compile a refinement, which starts from the caller's image; `options.sampler` is one of `REFINERS`.

    Raises: as `compile_sample`.
    """
    return _compile("method", "refines no images", REFINERS, available_refiners(card), card, options)


def compile_score(card: ModelCard, scale: ScaleSpec) -> Program:
    """Compile a score at one scale.

    Raises:
        UnsupportedError: the model has no energy, or the scale's method is unknown.
    """
    if scale.method not in SCORERS:
        raise UnsupportedError("scales", f"{card.name} scores {scale.name} by {scale.method}, which is not known")
    return SCORERS[scale.method](card, scale)


def _compile(
    field: str,
    cannot: str,
    methods: Mapping[str, Sampler],
    names: tuple[str, ...],
    card: ModelCard,
    options: SampleOptions,
) -> Program:
    if not names:
        raise UnsupportedError("model", f"{card.name} {cannot}")
    name = options.sampler or names[0]
    if name not in methods:
        raise OptionError(field, f"must be one of {', '.join(methods)}, got {name!r}")
    if name not in names:
        raise UnsupportedError(field, f"{card.name} offers {', '.join(names)}, not {name}")
    method = methods[name]
    for option, _ in options.parameters:
        if option in SampleOptions.__slots__:
            raise OptionError(option, "is an option of its own and no parameter")
    for option in options.given():
        if option not in _COMMON and option not in method.options:
            raise UnsupportedError(option, f"{field} {name} does not take it")
    return method.compile(card, replace(options, sampler=name))
