"""Whether a program has a use for labels: not every sampler of a model with labels has."""

from __future__ import annotations

from ..card import ModelCard
from ..program import LangevinUpdate, Line, Program


def takes_labels(card: ModelCard, program: Program) -> bool:
    """Whether the label of a row makes a difference: a network that takes one gives something that the program uses.

    So that callers who give labels to a program without, such as a chain on an energy of images alone, can be told.
    """
    labelled = {
        name for name, network in card.networks.items() if any(tensor.name == "label" for tensor in network.inputs)
    }
    return any(line.network in labelled and _uses_outputs(line) for line in program.lines)


def _uses_outputs(line: Line) -> bool:
    """Not so where registers are only drawn anew: a line runs a network even if nothing of it enters."""
    rules = [update.rule for update in line.updates]
    return not rules or any(not isinstance(rule, LangevinUpdate) or rule.gradient != 0.0 for rule in rules)
