"""Calibration of a trained energy on the held-out calibration split (SPEC 8), the last step of its training."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import torch

from ..calibrate import Calibration
from ..card import ModelCard, ScaleSpec
from ..checkpoint import load_checkpoint, load_modules, save_checkpoint
from ..data import load_digits_split
from ..run import Network, networks_of, run
from ..samplers import compile_score

SEED = 8128
"""Keys the noise that brings the calibration images to the noisy scales."""


def calibrate_checkpoint(directory: Path, images: np.ndarray | None = None) -> ModelCard:
    """Fill in the calibration energies of every scale of a checkpoint's energy, and write it back.

    images: held-out data (n, *shape); by default the calibration split of the digits.

    An image is scored just as the server scores it, by the score program of the scale, so that its
    energy and those of later in-distribution images are exchangeable.

    Raises:
        ValueError: the model has no energy, or gives one that is not finite.
        BundleError: the checkpoint cannot be read.
    """
    card = load_checkpoint(directory)
    if card.energy is None:
        raise ValueError(f"{card.name} has no energy to calibrate")
    networks = networks_of(card, load_modules(directory, card.modules))
    images = load_digits_split().calibration.images if images is None else images
    scales = tuple(
        msgspec.structs.replace(scale, calibration=tuple(_energies(card, networks, scale, images).tolist()))
        for scale in card.energy.scales
    )
    card = msgspec.structs.replace(card, energy=msgspec.structs.replace(card.energy, scales=scales))
    save_checkpoint(directory, card)
    return card


def _energies(card: ModelCard, networks: dict[str, Network], scale: ScaleSpec, images: np.ndarray) -> np.ndarray:
    energy = card.energy
    result = run(compile_score(card, scale), card, networks, seed=SEED, count=len(images), images=torch.tensor(images))
    if energy is None or result.energy is None:
        raise ValueError(f"{card.name} gave no energies at scale {scale.name}")
    return Calibration(result.energy.double().numpy() * energy.sign * energy.scale).energies
