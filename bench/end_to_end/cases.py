"""What is measured: models, what is asked of them, in how many steps and rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from models.card import ModelCard
from models.program import Program
from models.samplers import SampleOptions, compile_sample, compile_score

Task = Literal["sample", "score", "langevin"]

ROWS = (1, 8, 32, 64)
NFE = (1, 2, 4, 8)
LANGEVIN_STEPS = 12


class EndToEndError(ValueError):
    """A measurement that cannot be made; the message says why."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One model and what is asked of it.

    preset: whether it is a network at a paper's size with random weights (`models.presets`), or one of the zoo.
    networks: those that the tasks run, by name; of a preset the others are left out of the bundle that is made here.
    weight: its part of the time. slow_export: writing its graph takes longer than measuring it, so that it is measured
    with ONNX Runtime where a bundle is there already.
    """

    model: str
    preset: bool
    tasks: tuple[Task, ...]
    networks: tuple[str, ...]
    weight: float
    slow_export: bool = False


WORKLOADS = (
    Workload("ddpm-cifar10", True, ("sample",), ("denoiser",), 8.0),
    Workload("hat-cifar10", True, ("score", "langevin"), ("energy", "energy_gradient"), 3.0),
    Workload("latent-nvae30", True, ("langevin",), ("decoder", "prior_gradient"), 2.0, slow_export=True),
    Workload("digits-ddpm", False, ("sample",), ("denoiser",), 2.0),
    Workload("digits-hat", False, ("score", "langevin"), ("energy", "energy_gradient"), 1.0),
    Workload("digits-latent", False, ("langevin",), ("decoder", "prior_gradient"), 1.0),
)
"""The 35.7M-parameter U-Net above all; the least important model comes last."""


@dataclass(frozen=True, slots=True)
class Case:
    """One request: `rows` samples of `steps` network evaluations, energies, or chains of `steps` Langevin steps."""

    model: str
    task: Task
    steps: int
    rows: int

    @property
    def text(self) -> str:
        """In words, without the model."""
        rows = f"{self.rows} row{'s' if self.rows > 1 else ''}"
        if self.task == "score":
            return f"score, {rows}"
        return f"{'DDIM' if self.task == 'sample' else 'Langevin'} {self.steps}, {rows}"


def cases_of(
    workload: Workload, rows: Sequence[int] = ROWS, steps: Sequence[int] = NFE, langevin: int = LANGEVIN_STEPS
) -> list[Case]:
    """The cases of a workload. steps: network evaluations of a sample. langevin: steps of a chain."""
    taken: dict[Task, Sequence[int]] = {"sample": steps, "score": (1,), "langevin": (langevin,)}
    return [Case(workload.model, task, count, n) for task in workload.tasks for count in taken[task] for n in rows]


def program_of(card: ModelCard, case: Case) -> Program:
    """The program that the server compiles such a request into.

    Raises:
        EndToEndError: the model does not do that. OptionError, UnsupportedError: not in so many steps.
    """
    if case.task == "score":
        if card.energy is None:
            raise EndToEndError(f"{card.name} scores no images")
        return compile_score(card, card.energy.scales[0])
    if case.task == "sample":
        return compile_sample(card, SampleOptions(sampler="ddim", steps=case.steps))
    if card.sampling is None or "latent" not in card.sampling.samplers:
        return compile_sample(card, SampleOptions(sampler="langevin", steps=case.steps))
    scales = len(card.sampling.parameters["alpha"])  # as many chains, one after the other
    if case.steps % scales:
        raise EndToEndError(f"langevin steps: must be a multiple of {card.name}'s {scales} chains, got {case.steps}")
    chain = ("langevin_steps", (float(case.steps // scales),))
    return compile_sample(card, SampleOptions(sampler="latent", parameters=(chain,)))
