"""The models that a simulated server has: their cards, read without their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from models.bundle import MANIFEST, Manifest, decode
from models.card import ModelCard
from models.checkpoint import CHECKPOINT
from models.samplers import available_refiners, available_samplers
from server.client import ModelSummary


class ModelsError(ValueError):
    """A folder without models; the message names it."""


def read_cards(folder: Path) -> dict[str, ModelCard]:
    """The cards of a repository of bundles (the newest version of each) or of a folder of checkpoints, by name.

    Raises:
        ModelsError: there are none. BundleError: one cannot be read; names file and field.
    """
    bundles = [path for path in folder.glob(f"*/*/{MANIFEST}") if path.parent.name.isdigit()]
    cards = [decode(path, Manifest).card for path in sorted(bundles, key=lambda path: int(path.parent.name))]
    if not cards:
        # The classifier that judges samples is a checkpoint too, but no model that is served.
        found = [decode(path, ModelCard) for path in sorted(folder.glob(f"*/{CHECKPOINT}"))]
        cards = [card for card in found if card.sampling is not None or card.energy is not None]
    if not cards:
        raise ModelsError(f"models: {folder} holds neither bundles (NAME/VERSION/{MANIFEST}) nor NAME/{CHECKPOINT}")
    return {card.name: card for card in sorted(cards, key=lambda card: card.name)}


def summaries(cards: Mapping[str, ModelCard]) -> Sequence[ModelSummary]:
    """The cards as a server lists its models."""
    return [
        ModelSummary(
            name=card.name,
            version=1,
            family=card.family,
            description=card.description,
            samplers=available_samplers(card),
            scores=card.energy is not None,
            refiners=available_refiners(card),
        )
        for card in cards.values()
    ]
