"""Training of `digits-classifier`, whose features FD-digits is measured in; on the train split alone.

It is frozen once shipped: retraining it changes the unit of every published FD-digits.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..card import ImageSpec, LabelSpec, ModelCard, NetworkSpec, TensorSpec
from ..checkpoint import save_checkpoint, save_module
from ..data import CLASSES, LabelledImages, load_digits_split
from ..networks.classifier import Classifier, one_thread
from .ddpm import Report, learning_rate_factor
from .provenance import provenance

NAME = "digits-classifier"
ARCHITECTURE = "digits-classifier"
CONFIG: dict[str, Any] = {"channels": 1, "size": 8, "classes": CLASSES, "width": 16, "features": 64, "dropout": 0.3}


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters; the defaults are the ones of the shipped checkpoint.

    `max_shift`: images are moved by up to this fraction of a pixel in each direction, so that a thousand
    images suffice. No noise is added: features blind to noise would hide a sampler's residual noise.
    """

    seed: int = 0
    steps: int = 400
    batch: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    max_shift: float = 0.5


def train_classifier(data: LabelledImages, recipe: Recipe, report: Report, classes: int = CLASSES) -> Classifier:
    """Train by cross-entropy on images (n, 1, 8, 8) with labels below `classes`; returns the network in eval mode."""
    # Initial weights and dropout read torch's global stream: forked, so that the caller's stream is left alone.
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return _train(Classifier(**{**CONFIG, "classes": classes}).train(), data, recipe, report)


def _train(network: Classifier, data: LabelledImages, recipe: Recipe, report: Report) -> Classifier:
    generator = torch.Generator().manual_seed(recipe.seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate_factor(step, recipe.steps))
    images, labels = torch.tensor(data.images), torch.tensor(data.labels)
    losses = []
    for step in range(recipe.steps):
        chosen = torch.randint(len(labels), (recipe.batch,), generator=generator)
        logits = network(shift_images(images[chosen], recipe.max_shift, generator))
        loss = functional.cross_entropy(logits, labels[chosen])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        rate.step()
        losses.append(float(loss.detach()))
        report(step + 1, recipe.steps, f"loss {np.mean(losses[-50:]):.4f}")
    return network.eval()


def shift_images(images: Tensor, max_shift: float, generator: torch.Generator) -> Tensor:
    """Move each image by its own uniform shift of at most `max_shift` pixels, bilinearly, edges repeated."""
    rows, _, height, width = images.shape
    shift = (2.0 * torch.rand(rows, 2, generator=generator) - 1.0) * max_shift
    affine = torch.zeros(rows, 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = 1.0
    affine[:, :, 2] = shift * torch.tensor([2.0 / width, 2.0 / height])  # grid_sample spans an image by [-1, 1]
    grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


@torch.inference_mode()
def accuracy(network: nn.Module, data: LabelledImages) -> float:
    """Fraction of the images whose largest logit is at their label."""
    predicted = network(torch.tensor(data.images)).argmax(dim=1)
    return float((predicted == torch.tensor(data.labels)).float().mean())


def train_digits_classifier(output: Path, report: Report, recipe: Recipe | None = None) -> Path:
    """Train `digits-classifier` and write its checkpoint below `output`; returns its directory."""
    recipe = recipe or Recipe()
    started = time.perf_counter()
    split = load_digits_split()
    network = train_classifier(split.train, recipe, report)
    seconds = round(time.perf_counter() - started, 1)
    directory = output / NAME
    module = save_module(directory, "classifier", ARCHITECTURE, CONFIG, network)
    card = ModelCard(
        name=NAME,
        family="classifier",
        description="Classifier of 8x8 handwritten digits; its penultimate layer is the feature space of FD-digits.",
        image=ImageSpec(channels=1, height=8, width=8),
        labels=LabelSpec(count=CLASSES, names=tuple(str(digit) for digit in range(CLASSES))),
        modules={"classifier": module},
        networks={
            "classifier": NetworkSpec(
                module="classifier",
                inputs=(TensorSpec(name="sample", shape=(1, 8, 8)),),
                outputs=(TensorSpec(name="logits", shape=(CLASSES,)),),
            )
        },
        training={
            "algorithm": "cross-entropy on the train part, images shifted by fractions of a pixel; on one thread",
            "recipe": asdict(recipe),
            "optimiser": "AdamW, warm-up and cosine decay to a tenth",
            "accuracy": {
                "train": round(accuracy(network, split.train), 4),
                "calibration": round(accuracy(network, split.calibration), 4),
                "test": round(accuracy(network, split.test), 4),
            },
            "seconds": seconds,
            **provenance(),
        },
    )
    save_checkpoint(directory, card)
    return directory
