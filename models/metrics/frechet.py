"""FD-digits: the Frechet distance between images and the digits, on a small frozen classifier's features.

Heusel et al. 2017 (arXiv 1706.08500, eq. 6) fit a Gaussian to the features of each set and take
`|mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))`, the squared Frechet (2-Wasserstein) distance of the two.
Here the features are the 64 penultimate activations of `models/zoo/digits-classifier` instead of Inception's,
so the numbers are comparable with each other and with nothing else. They are not FID and never called that.

**Number of samples.** The estimate is biased upward, by about const/n: a covariance estimated from few samples
differs from the true one even if the images are perfect. Compare numbers taken at the same n only, use n >= 1000
to rank samplers, and read `floor` (the test images, n = 397, against the same training features) for what it is:
what perfect samples score at n = 397. With more samples a good sampler may fall below it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial.distance import cdist

from ..bundle import BundleError
from ..checkpoint import load_checkpoint, load_modules
from ..data import CLASSES, DigitsSplit, load_digits_split
from ..networks.classifier import Classifier, one_thread

Array = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]

CLASSIFIER = Path(__file__).parent.parent / "zoo" / "digits-classifier"
CHUNK = 512
CLOSE_QUANTILE = 0.05


@dataclass(frozen=True)
class Moments:
    """The Gaussian fitted to a set of features. mean: (d,); covariance: (d, d), unbiased; both float64."""

    mean: Array
    covariance: Array

    @classmethod
    def of(cls, features: npt.ArrayLike) -> Moments:
        """Fit to features (n, d), n >= 2, in float64.

        Raises:
            ValueError: not two-dimensional, fewer than 2 rows, or not finite.
        """
        values = np.asarray(features, dtype=np.float64)
        if values.ndim != 2 or len(values) < 2:
            raise ValueError(f"features must be (n, d) with n >= 2, got shape {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError("features must be finite")
        mean = values.mean(axis=0)
        centred = values - mean
        return cls(mean, centred.T @ centred / (len(values) - 1))


def frechet_distance(first: Moments, second: Moments) -> float:
    """Squared Frechet distance of two Gaussians (arXiv 1706.08500, eq. 6); zero only if they are equal.

    `tr (C_a C_b)^(1/2)` is computed as `tr (R C_b R)^(1/2)` with `R = C_a^(1/2)`: a symmetric product, whose
    eigenvalues are real. A matrix square root of `C_a C_b` itself turns complex when a covariance is singular,
    which it is with fewer samples than features.
    """
    root = _symmetric_root(first.covariance)
    cross = np.linalg.eigvalsh(root @ second.covariance @ root)
    difference = first.mean - second.mean
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    # Rounding leaves eigenvalues of -1e-14 and, for equal arguments, a distance of the same size.
    distance = difference @ difference + traces - 2.0 * np.sqrt(cross.clip(min=0.0)).sum()
    return max(0.0, float(distance))


def _symmetric_root(matrix: Array) -> Array:
    values, vectors = np.linalg.eigh(matrix)
    root: Array = (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T
    return root


@dataclass(frozen=True)
class SampleQuality:
    """What is published of a set of samples.

    count: number of samples.
    frechet, floor: FD-digits, and that of the 397 test images (see the module on the number of samples).
    class_histogram: samples by predicted digit, 0..9; test images give about count/10 each.
    confidence: mean largest softmax probability; rises with guidance.
    label_accuracy: fraction predicted as the digit that was asked for; None without labels.
    nearest, nearest_test: median distance to the nearest training image, of the samples and of the test images
        (Euclidean over the pixels).
    close_fraction: fraction of samples closer to a training image than 95% of the test images are; fresh
        digits give 0.05, memorised ones 1.
    """

    count: int
    frechet: float
    floor: float
    class_histogram: tuple[int, ...]
    confidence: float
    label_accuracy: float | None
    nearest: float
    nearest_test: float
    close_fraction: float


class FrechetDigits:
    """FD-digits and its companions, against the train split. Loading takes tens of milliseconds; keep one.

    Features are computed in float64, so that they depend neither on how many images come together nor,
    to 1e-9, on the machine.
    """

    def __init__(self, network: Classifier, split: DigitsSplit) -> None:
        """network: trained `Classifier`, taken over (put in float64 and eval mode). split: the digits."""
        self._network = network.double().eval().requires_grad_(False)
        self._split = split
        self.reference = Moments.of(self.features(split.train.images))
        """Gaussian of the train split's features."""

    @classmethod
    def load(cls, directory: Path = CLASSIFIER) -> FrechetDigits:
        """Load the frozen classifier's checkpoint and the digits.

        Raises:
            BundleError: the checkpoint is missing, damaged or not one of a `digits-classifier`.
        """
        card = load_checkpoint(directory)
        spec = card.modules.get("classifier")
        if spec is None:
            raise BundleError(f"{directory}: modules must name 'classifier', got {sorted(card.modules)}")
        network = load_modules(directory, {"classifier": spec})["classifier"]
        if not isinstance(network, Classifier):
            raise BundleError(f"{directory}: module 'classifier' is a {spec.architecture}, not a classifier of digits")
        return cls(network, load_digits_split())

    def features(self, images: npt.ArrayLike) -> Array:
        """Penultimate activations. images: (n, 1, 8, 8) in [-1, 1]. Returns: (n, 64) float64."""
        values = _checked(images, self._split.train.images[0].size)
        with torch.inference_mode(), one_thread():
            return np.concatenate([self._network.features(torch.tensor(chunk)).numpy() for chunk in _chunks(values)])

    def logits(self, images: npt.ArrayLike) -> Array:
        """Class scores. images: (n, 1, 8, 8) in [-1, 1]. Returns: (n, 10) float64."""
        return self._logits(self.features(images))

    def distance(self, images: npt.ArrayLike) -> float:
        """FD-digits of images (n, 1, 8, 8) in [-1, 1], n >= 2, against the train split."""
        return frechet_distance(self.reference, Moments.of(self.features(images)))

    @cached_property
    def floor(self) -> float:
        """FD-digits of the 397 test images: what perfect samples score at that number."""
        return self.distance(self._split.test.images)

    def class_histogram(self, images: npt.ArrayLike) -> tuple[int, ...]:
        """Number of images predicted as each digit 0..9."""
        return tuple(np.bincount(self.logits(images).argmax(axis=1), minlength=CLASSES).tolist())

    def label_accuracy(self, images: npt.ArrayLike, labels: npt.ArrayLike) -> float:
        """Fraction of images predicted as their label. labels: (n,) integers 0..9."""
        return _accuracy(self.logits(images), labels)

    def nearest_distance(self, images: npt.ArrayLike) -> Array:
        """Euclidean distance of each image to the nearest training image, over 64 pixels in [-1, 1]; (n,)."""
        train = self._split.train.images.reshape(len(self._split.train), -1)
        values = _checked(images, train.shape[1])
        nearest = [cdist(chunk, train).min(axis=1) for chunk in _chunks(values.reshape(len(values), -1))]
        return np.concatenate(nearest)

    def quality(self, images: npt.ArrayLike, labels: npt.ArrayLike | None = None) -> SampleQuality:
        """Everything above for one set of samples.

        images: (n, 1, 8, 8) in [-1, 1], n >= 2. labels: (n,) the digits that were asked for, if any.
        """
        features = self.features(images)
        logits = self._logits(features)
        nearest = self.nearest_distance(images)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return SampleQuality(
            count=len(logits),
            frechet=frechet_distance(self.reference, Moments.of(features)),
            floor=self.floor,
            class_histogram=tuple(np.bincount(logits.argmax(axis=1), minlength=CLASSES).tolist()),
            confidence=float((1.0 / odds.sum(axis=1)).mean()),
            label_accuracy=None if labels is None else _accuracy(logits, labels),
            nearest=float(np.median(nearest)),
            nearest_test=float(np.median(self._nearest_test)),
            close_fraction=float((nearest < np.quantile(self._nearest_test, CLOSE_QUANTILE)).mean()),
        )

    @cached_property
    def _nearest_test(self) -> Array:
        return self.nearest_distance(self._split.test.images)

    def _logits(self, features: Array) -> Array:
        with torch.inference_mode():
            return np.asarray(self._network.head(torch.tensor(features)).numpy(), dtype=np.float64)


def _checked(images: npt.ArrayLike, pixels: int) -> Array:
    values = np.asarray(images, dtype=np.float64)
    if values.ndim != 4 or len(values) == 0 or values[0].size != pixels:
        raise ValueError(f"images must be (n, 1, 8, 8) with n >= 1, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("images must be finite")
    return values


def _chunks(values: Array) -> list[Array]:
    return [values[start : start + CHUNK] for start in range(0, len(values), CHUNK)]


def _accuracy(logits: Array, labels: npt.ArrayLike) -> float:
    wanted = np.asarray(labels)
    if wanted.shape != (len(logits),):
        raise ValueError(f"labels must be ({len(logits)},), one an image, got shape {wanted.shape}")
    return float((logits.argmax(axis=1) == wanted).mean())
