"""Plans: what a step does, apart from which rows take it. One CUDA graph is captured for each plan and batch bucket."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from models.card import ModelCard
from models.program import Line, Program, Rule
from models.samplers import (
    REFINERS,
    SAMPLERS,
    available_refiners,
    available_samplers,
    compile_refine,
    compile_sample,
    compile_score,
)
from models.samplers.options import OptionError, UnsupportedError


class Target(NamedTuple):
    """One fused update of a step: of a register, by a kind of rule, with one of the network's outputs."""

    register: str
    rule: type[Rule]
    output: int


class Plan(NamedTuple):
    """A network, whether its first output is an energy that the host is told, and all updates that its rows may have,
    in a fixed order.

    A row that has no update of a target takes part in it as padding does.
    """

    network: str
    energies: bool
    targets: tuple[Target, ...]

    def covers(self, other: Plan) -> bool:
        """Whether rows of another plan can run by this one."""
        return (
            self.network == other.network
            and self.energies >= other.energies
            and set(other.targets) <= set(self.targets)
        )


def plan_of(network: str, lines: Sequence[Line]) -> Plan:
    """The smallest plan for rows at these lines, all of one network."""
    targets = {Target(update.register, type(update.rule), update.output) for line in lines for update in line.updates}
    energies = any(line.kind != "ensemble" for line in lines)
    return Plan(network, energies, tuple(sorted(targets, key=lambda t: (t.register, t.rule.__name__, t.output))))


def known_plans(card: ModelCard) -> tuple[Plan, ...]:
    """One plan for each network, with every update that a model's samplers, refiners and scores make of its outputs.

    Options change coefficients, and hardly ever plans; a step that none of these covers runs without a graph.
    """
    lines: dict[str, list[Line]] = {}
    for program in _programs(card):
        for line in program.lines:
            lines.setdefault(line.network, []).append(line)
    return tuple(plan_of(network, found) for network, found in lines.items())


def _programs(card: ModelCard) -> Iterator[Program]:
    sampled = ((compile_sample, name, SAMPLERS[name]) for name in available_samplers(card))
    refined = ((compile_refine, name, REFINERS[name]) for name in available_refiners(card))
    for compile_by, name, method in (*sampled, *refined):
        for options in method.updates:
            try:
                yield compile_by(card, replace(options, sampler=name))
            except (OptionError, UnsupportedError):
                continue  # `custom` has no defaults; its steps are those of the others
    for scale in card.energy.scales if card.energy is not None else ():
        yield compile_score(card, scale)
