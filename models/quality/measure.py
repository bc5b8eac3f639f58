"""Samples and scores of checkpoints, by the offline loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..card import ModelCard, ScaleSpec
from ..checkpoint import load_checkpoint, load_modules
from ..data import CLASSES
from ..metrics.frechet import FrechetDigits
from ..metrics.ood import DetectionResult, EnergyFunction, evaluate
from ..metrics.outliers import OOD_SETS, Images, OodSet
from ..run import Network, networks_of, run
from ..samplers import compile_sample, compile_score
from .rows import QualityRow

BATCH = 500
MANY_EVALUATIONS = 20
"""A scale that takes more of them for an image is measured with one seed."""
SCORE_SEED = 20240
"""Keys the noise of scores, the same for all sets of images."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over the seeds."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0)


@dataclass(frozen=True)
class RowQuality:
    """What is published of a row; see `metrics.frechet.SampleQuality` for the columns.

    diversity: variance of the pixels, summed over them; with labels within each label, and the mean of that.
    class_histogram: mean share of each digit 0..9.
    """

    row: QualityRow
    setting: str
    nfe: int
    gradient_passes: int
    frechet: Spread
    diversity: Spread
    nearest: float
    close_fraction: float
    confidence: float
    label_accuracy: float | None
    class_histogram: tuple[float, ...]


@dataclass(frozen=True)
class ScaleQuality:
    """How well one scale of an energy, or a baseline, tells each set from the test digits."""

    detector: str
    results: list[DetectionResult]

    @property
    def model(self) -> str | None:
        """Whose energy it is; None for a baseline, whose name is one word."""
        model, separator, _ = self.detector.rpartition(" ")
        return model if separator else None

    @property
    def seeds(self) -> int:
        """How many seeds drew the sets."""
        return len(self.results[0].seeds)


@dataclass(frozen=True)
class BoardDensity:
    """exp(-E)/Z beside the exact density at one noise scale, see `metrics.checkerboard.ScaleMap`."""

    scale: str
    log_z: float
    total_variation: float
    divergence: float


class Checkpoint:
    """A model of the zoo, ready to run offline."""

    def __init__(self, directory: Path) -> None:
        self.card = load_checkpoint(directory)
        self.modules = load_modules(directory, self.card.modules)
        self.networks = networks_of(self.card, self.modules)

    def samples(self, row: QualityRow, count: int, seed: int) -> tuple[Images, npt.NDArray[np.int64] | None]:
        """`count` samples in requests of `BATCH`, request i with seed `1000 seed + i`; and the labels asked for."""
        program = compile_sample(self.card, row.options)
        networks = _quiet(self.networks) if row.quiet else self.networks
        labels = np.arange(count) % CLASSES if row.labelled else None
        parts = []
        for number, start in enumerate(range(0, count, BATCH)):
            size = min(BATCH, count - start)
            chosen = None if labels is None else labels[start : start + size].tolist()
            seeded = 1000 * seed + number
            parts.append(run(program, self.card, networks, seed=seeded, count=size, labels=chosen).state.numpy())
        return np.concatenate(parts), labels

    def energy(self, scale: ScaleSpec, images: Images) -> npt.NDArray[np.float64]:
        """U of the images at one scale, `(n,)`."""
        energy = self.card.energy
        if energy is None:
            raise ValueError(f"{self.card.name} has no energy to score with")
        program = compile_score(self.card, scale)
        values = []
        for start in range(0, len(images), BATCH):
            part = torch.tensor(images[start : start + BATCH])
            found = run(program, self.card, self.networks, seed=SCORE_SEED + start, count=len(part), images=part)
            if found.energy is None:
                raise ValueError(f"{self.card.name}: the program of scale {scale.name} gives no energy")
            values.append(found.energy.double().numpy() * energy.sign * energy.scale)
        return np.concatenate(values)


def measure_row(
    checkpoint: Checkpoint, metric: FrechetDigits, row: QualityRow, count: int, seeds: Sequence[int]
) -> RowQuality:
    """Draw `count` samples for each seed, and take the means."""
    program = compile_sample(checkpoint.card, row.options)
    found, spreads = [], []
    for seed in seeds:
        images, labels = checkpoint.samples(row, count, seed)
        found.append(metric.quality(images, labels))
        spreads.append(diversity(images, labels))
    histogram = np.mean([quality.class_histogram for quality in found], axis=0) / count
    accuracies = [quality.label_accuracy for quality in found if quality.label_accuracy is not None]
    return RowQuality(
        row=row,
        setting=row.setting,
        nfe=program.nfe,
        gradient_passes=program.gradient_passes,
        frechet=Spread.of([quality.frechet for quality in found]),
        diversity=Spread.of(spreads),
        nearest=float(np.mean([quality.nearest for quality in found])),
        close_fraction=float(np.mean([quality.close_fraction for quality in found])),
        confidence=float(np.mean([quality.confidence for quality in found])),
        label_accuracy=float(np.mean(accuracies)) if accuracies else None,
        class_histogram=tuple(histogram.tolist()),
    )


def diversity(images: Images, labels: npt.NDArray[np.int64] | None) -> float:
    """Variance of the pixels, summed over them; within each label where there are labels, and the mean of that."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    groups = [flat] if labels is None else [flat[labels == label] for label in np.unique(labels)]
    return float(np.mean([group.var(axis=0).sum() for group in groups]))


def measure_energies(
    checkpoint: Checkpoint,
    test: Images,
    seeds: Sequence[int],
    progress: Callable[[str], None],
    sets: Sequence[OodSet] = OOD_SETS,
) -> list[ScaleQuality]:
    """Detection by each scale of the model's energy, with every seed; by chains that are no default with the first.

    Those take hours otherwise, and what the other seeds add is the draw of the sets.
    """
    energy = checkpoint.card.energy
    found = []
    for index, scale in enumerate(energy.scales if energy is not None else ()):
        name = f"{checkpoint.card.name} {scale.name}"
        progress(name)
        long = index > 0 and compile_score(checkpoint.card, scale).nfe > MANY_EVALUATIONS
        chosen = seeds[:1] if long else seeds
        found.append(measure_detector(name, partial(checkpoint.energy, scale), test, chosen, sets))
    return found


def measure_detector(
    name: str, energy: EnergyFunction, test: Images, seeds: Sequence[int], sets: Sequence[OodSet] = OOD_SETS
) -> ScaleQuality:
    """Detection by any energy."""
    return ScaleQuality(name, evaluate(energy, test, seeds, sets))


def samples_digits(card: ModelCard) -> bool:
    """Whether the model draws digits, which FD-digits is for."""
    return card.sampling is not None and card.image.shape == (1, 8, 8)


def _quiet(networks: Mapping[str, Network]) -> dict[str, Network]:
    def silence(network: Network) -> Network:
        def call(**inputs: Tensor) -> tuple[Tensor, ...]:
            if "latent" in inputs:
                inputs["latent"] = torch.zeros_like(inputs["latent"])
            return network(**inputs)

        return call

    return {name: silence(network) for name, network in networks.items()}
