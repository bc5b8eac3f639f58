"""SPEC 8's near set: test images of the digits 0 to 4 against images of 5 to 9, which no detector here has seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..data import CLASSES, KNOWN_DIGITS, DigitsSplit
from ..metrics.baselines import Array, fit_baselines
from ..metrics.outliers import Images, unseen_digits
from ..networks.classifier import Classifier
from ..train.classifier import Recipe, train_classifier
from .measure import Checkpoint, ScaleQuality, measure_detector, measure_energies

EXPLANATION = """\
Everything here was trained on the {train} training images of the digits 0 to 4 alone, the classifier of maximum-softmax
too. In-distribution are their {test} test images; each seed draws as many outliers from the {pool} images of the digits
5 to 9, all of which are unseen, whatever their part of the split."""


def measure_near(
    checkpoint: Checkpoint, split: DigitsSplit, seeds: Sequence[int], report: Callable[[str], None]
) -> list[ScaleQuality]:
    """Detection by every scale of the energy, and by the baselines, on digits that they were not trained on.

    checkpoint: a model whose training and calibration saw `KNOWN_DIGITS` alone.
    """
    known, sets = split.select(KNOWN_DIGITS), [unseen_digits(unseen_pool(split))]
    found = measure_energies(checkpoint, known.test.images, seeds, report, sets)
    report("classifier of the known digits")
    network = train_classifier(known.train, Recipe(), lambda *_: None, classes=len(KNOWN_DIGITS))
    for name, energy in fit_baselines(known.train.images, classify_with(network)).items():
        report(name)
        found.append(measure_detector(name, energy, known.test.images, seeds, sets))
    return found


def unseen_pool(split: DigitsSplit) -> Images:
    """Every image of the other digits, of all parts of the split; (n, 1, 8, 8)."""
    others = split.select(set(range(CLASSES)) - set(KNOWN_DIGITS))
    return np.concatenate([part.images for part in (others.train, others.calibration, others.test)])


def classify_with(network: Classifier) -> Callable[[Images], Array]:
    """The logits of a classifier, as baselines take them."""
    network = network.double().eval()

    def classify(images: Images) -> Array:
        with torch.inference_mode():
            return np.asarray(network(torch.tensor(images).double()).numpy())

    return classify


def explanation(split: DigitsSplit) -> str:
    """What stands above the table."""
    known = split.select(KNOWN_DIGITS)
    return EXPLANATION.format(train=len(known.train), test=len(known.test), pool=len(unseen_pool(split)))
