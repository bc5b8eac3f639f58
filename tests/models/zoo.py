"""The shipped models' cards, and what they can be asked for."""

from __future__ import annotations

from models.checkpoint import load_checkpoint
from models.samplers import available_refiners, available_samplers

from ..conftest import ZOO

CARDS = {card.name: card for card in (load_checkpoint(path.parent) for path in sorted(ZOO.glob("*/checkpoint.json")))}
SAMPLED = [(name, sampler) for name, card in CARDS.items() for sampler in available_samplers(card)]
REFINED = [(name, method) for name, card in CARDS.items() for method in available_refiners(card)]
