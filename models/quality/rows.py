"""What is measured: one row for each setting of each sampler that a model has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..card import ModelCard
from ..program import Program
from ..samplers import SAMPLERS, SampleOptions, UnsupportedError, available_samplers, compile_sample


@dataclass(frozen=True)
class QualityRow:
    """One line of the table.

    labelled: labels 0, 1, ... in turn are asked for; else the null label, or none. quiet: every latent is 0, which
    shows what a model's noise input is good for.
    """

    model: str
    options: SampleOptions
    labelled: bool = False
    quiet: bool = False

    @property
    def setting(self) -> str:
        """The sampler and the options that were set, as people read them."""
        options = self.options
        given = [(name, getattr(options, name)) for name in ("steps", "m", "eta", "guidance", "temperature")]
        shown = [f"{name}={_plain(value)}" for name, value in given if value not in (None, ())]
        shown += [f"{name}={_plain(values)}" for name, values in options.parameters]
        shown += ["latents 0"] if self.quiet else []
        return f"{options.sampler} {', '.join(shown)}".strip()


def rows_of(card: ModelCard) -> Iterator[QualityRow]:
    """The settings that its samplers want to be shown with (`Sampler.shown`), at each of the model's step numbers.

    With labels, the model's default is measured with labels too; a guided setting needs them. Where the default's
    network takes a latent, it is measured with latents of 0 too.
    """
    names = [name for name in available_samplers(card) if name in (card.sampling.samplers if card.sampling else ())]
    for name in names:
        for options in SAMPLERS[name].shown:
            options = replace(options, sampler=name)
            for steps in _steps(card, options):
                row = QualityRow(card.name, replace(options, steps=steps), labelled=options.guidance is not None)
                if compiled(card, row.options) is not None:
                    yield row
    if not names:
        return
    default = SampleOptions(sampler=names[0], steps=card.sampling.default_steps if card.sampling else None)
    if card.labels is not None:
        yield QualityRow(card.name, default, labelled=True)
    program = compiled(card, default)
    if program is not None and any(line.latent is not None for line in program.lines):
        yield QualityRow(card.name, default, quiet=True)


def compiled(card: ModelCard, options: SampleOptions) -> Program | None:
    """The setting's program, or None where the model does not have it."""
    try:
        return compile_sample(card, options)
    except UnsupportedError:
        return None


def _steps(card: ModelCard, options: SampleOptions) -> tuple[int | None, ...]:
    """A setting that says nothing of steps is shown at every number that the model was trained for."""
    if options.steps is not None or card.sampling is None or not card.sampling.grids:
        return (options.steps,)
    return card.sampling.accepted_steps()


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{entry:g}" for entry in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
