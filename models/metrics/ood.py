"""Out-of-distribution sets for 8x8 digits, and how well an energy detects them (SPEC 8).

Every set is a pure function of in-distribution images and a seed. Nothing may be tuned on them.
The positive class of a detector is a matter of taste and changes some metrics; here names say which it is.

*Near* also knows "digits 0-4 against 5-9", which is no transformation of images: `unseen_digits` draws from images of
digits that a detector's training left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_images

Array = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]
Category = Literal["near", "shifted", "far", "trap"]
EnergyFunction = Callable[[Images], npt.NDArray[np.floating]]
"""Images (n, channels, height, width) float32 in [-1, 1] -> energies (n,), high = out-of-distribution."""

LOW, HIGH = -1.0, 1.0
TRUE_POSITIVE_RATE = 0.95
RESAMPLES = 1000
CONFIDENCE = 0.95
BOOTSTRAP_ELEMENTS = 2_000_000


@dataclass(frozen=True)
class OodSet:
    """A named way to make out-of-distribution images.

    `make(images, rng)` takes images (n, channels, size, size) in [-1, 1] and returns as many, float32 in [-1, 1].
    `seeded` is false where the set is the same for every seed.
    """

    name: str
    category: Category
    description: str
    seeded: bool
    make: Callable[[Images, np.random.Generator], npt.NDArray[np.floating]]

    def images(self, sources: Images, seed: int) -> Images:
        """The set made from `sources` (n, channels, size, size) float32 in [-1, 1]; same shape and range.

        Raises:
            ValueError: `sources` is not a batch of square images, or leaves [-1, 1].
        """
        if sources.ndim != 4 or len(sources) == 0 or sources.shape[2] != sources.shape[3]:
            raise ValueError(f"images must be (n, channels, size, size) with n >= 1, got shape {sources.shape}")
        if not (np.abs(sources) <= 1.0).all():
            raise ValueError("images must be within [-1, 1]")
        made = self.make(sources, np.random.Generator(np.random.PCG64(seed)))
        return np.ascontiguousarray(np.clip(made, LOW, HIGH), dtype=np.float32)


def averages(images: Images, rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """Mean of each image and another one: half of either digit, the hardest of the sets.

    Raises:
        ValueError: fewer than two images.
    """
    if len(images) < 2:
        raise ValueError("averages need at least 2 images")
    partner = (np.arange(len(images)) + rng.integers(1, len(images), size=len(images))) % len(images)
    return (images + images[partner]) / 2.0


def rotation(images: Images, rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """A quarter turn, anticlockwise; a rotated 0 or 8 is nearly a digit again."""
    return np.rot90(images, axes=(2, 3))


def inversion(images: Images, rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """Dark and light exchanged."""
    return -images


def blur(images: Images, rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """Gaussian blur of standard deviation 1 pixel, background outside."""
    return gaussian_filter(images.astype(np.float64), sigma=(0.0, 0.0, 1.0, 1.0), mode="constant", cval=LOW)


def permuted_pixels(images: Images, rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """Pixels of each image in an order of its own: every grey value stays, every shape goes."""
    return rng.permuted(images.reshape(len(images), -1), axis=1).reshape(images.shape)


def pixel_gaussian(images: Images, rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """Independent Gaussian pixels with the mean and standard deviation that each pixel has in `images`, clipped."""
    mean, deviation = images.mean(axis=0, dtype=np.float64), images.std(axis=0, dtype=np.float64)
    return mean + deviation * rng.standard_normal(images.shape)


def uniform_noise(images: Images, rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """Independent uniform pixels."""
    return rng.uniform(LOW, HIGH, images.shape)


def stripes(images: Images, rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """Black and white stripes, 1 to 3 pixels wide, of random direction and phase."""
    rows = len(images)
    angle, half_period, phase = (
        rng.uniform(low, high, (rows, 1, 1, 1)) for low, high in ((0.0, np.pi), (1.0, 3.0), (0.0, 2.0 * np.pi))
    )
    size = images.shape[-1]
    across = np.arange(size) * np.cos(angle) + np.arange(size)[:, None] * np.sin(angle)
    return np.broadcast_to(np.where(np.sin(np.pi * across / half_period + phase) >= 0.0, HIGH, LOW), images.shape)


def photograph_crops(images: Images, rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """Grey crops, in full resolution, of the two photographs that come with scikit-learn.

    Many crops are sky or wall and nearly constant: in part the trap of `constant`.
    """
    photographs = _photographs()
    size = images.shape[-1]
    crops = np.empty(images.shape)
    for crop, which in zip(crops, rng.integers(len(photographs), size=len(images)), strict=True):
        photograph = photographs[which]
        top, left = rng.integers(np.array(photograph.shape) - size + 1)
        crop[:] = photograph[top : top + size, left : left + size]
    return crops


def constant(images: Images, rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """Images of one grey value, evenly from -1 to 1: simple images that many likelihoods prefer to real data."""
    levels = np.linspace(LOW, HIGH, len(images))
    return np.broadcast_to(levels[:, None, None, None], images.shape)


def blank(images: Images, rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """The empty background, -1 throughout: the constant that is nearest to a digit."""
    return np.full(images.shape, LOW)


def unseen_digits(pool: Images) -> OodSet:
    """Real digits of kinds that a detector's training left out: each seed draws as many as there are images.

    pool: images (m, channels, size, size) of those digits, at least as many as a detector is asked about.
    """

    def draw(images: Images, rng: np.random.Generator) -> npt.NDArray[np.floating]:
        return pool[rng.choice(len(pool), len(images), replace=False)]

    return OodSet("unseen", "near", "digits that training left out", True, draw)


@lru_cache(maxsize=1)
def _photographs() -> tuple[Array, ...]:
    """china.jpg and flower.jpg as (height, width) luminance in [-1, 1] (Rec. 601 weights)."""
    weights = np.array([0.299, 0.587, 0.114])
    return tuple((image @ weights) / 127.5 - 1.0 for image in load_sample_images().images)


OOD_SETS: tuple[OodSet, ...] = (
    OodSet("averages", "near", "averages of two images", True, averages),
    OodSet("rotation", "shifted", "rotated by 90 degrees", False, rotation),
    OodSet("inversion", "shifted", "inverted", False, inversion),
    OodSet("blur", "shifted", "Gaussian blur of 1 pixel", False, blur),
    OodSet("permuted", "far", "permuted pixels", True, permuted_pixels),
    OodSet("gaussian", "far", "Gaussian matched per pixel", True, pixel_gaussian),
    OodSet("uniform", "far", "uniform noise", True, uniform_noise),
    OodSet("stripes", "far", "stripes", True, stripes),
    OodSet("photographs", "far", "crops of photographs", True, photograph_crops),
    OodSet("constant", "trap", "constant images, all grey values", False, constant),
    OodSet("blank", "trap", "empty background", False, blank),
)
"""Every set, from the hardest category to the traps."""


@dataclass(frozen=True)
class Interval:
    """A percentile bootstrap interval."""

    low: float
    high: float


@dataclass(frozen=True)
class DetectionMetrics:
    """How well energies tell two sets apart.

    auroc: probability that an outlier has the higher energy, ties counted half.
    aupr_balanced: average precision with outliers as positives, reweighted as if both sets were equally large.
    fpr95_id_positive: fraction of outliers accepted at the threshold that accepts 95% of the in-distribution data
        (what OpenOOD reported before its version 1.5).
    fpr95_ood_positive: fraction of in-distribution data rejected at the threshold that catches 95% of the outliers
        (pytorch-ood's `FPR95TPR`, and OpenOOD from 1.5 on).
    ks: Kolmogorov-Smirnov statistic, the largest gap between the two distribution functions.
    cohens_d: difference of means in pooled standard deviations, positive if outliers are higher.
    """

    auroc: float
    aupr_balanced: float
    fpr95_id_positive: float
    fpr95_ood_positive: float
    ks: float
    cohens_d: float


def detection_metrics(id_energies: npt.ArrayLike, ood_energies: npt.ArrayLike) -> DetectionMetrics:
    """All metrics of `DetectionMetrics`. Energies: (n,) and (m,), finite, high = out-of-distribution.

    Raises:
        ValueError: an argument is not one-dimensional, empty, or not finite.
    """
    inside, outside = _energies("id_energies", id_energies), _energies("ood_energies", ood_energies)
    return DetectionMetrics(
        auroc=auroc(inside, outside),
        aupr_balanced=aupr_balanced(inside, outside),
        # With in-distribution data as positives, "high = positive" holds for the negated energies.
        fpr95_id_positive=fpr_at_tpr(-inside, -outside),
        fpr95_ood_positive=fpr_at_tpr(outside, inside),
        ks=kolmogorov_smirnov(inside, outside),
        cohens_d=cohens_d(inside, outside),
    )


def auroc(id_energies: npt.ArrayLike, ood_energies: npt.ArrayLike) -> float:
    """`P(U_ood > U_id) + P(U_ood = U_id)/2`, the Mann-Whitney statistic, exact. O((n + m) log n)."""
    inside, outside = np.sort(_energies("id_energies", id_energies)), _energies("ood_energies", ood_energies)
    below = np.searchsorted(inside, outside, side="left").sum()
    not_above = np.searchsorted(inside, outside, side="right").sum()
    return float(below + not_above) / (2.0 * len(inside) * len(outside))


def auroc_resamples(
    id_energies: npt.ArrayLike, ood_energies: npt.ArrayLike, seed: int, resamples: int = RESAMPLES
) -> Array:
    """AUROC of seeded bootstrap resamples, both sets drawn anew with replacement; (resamples,).

    A resample is a vector of multiplicities. With in-distribution energies sorted once, the multiplicity below an
    outlier is a running sum, so a resample costs O(n + m) and no sort.
    """
    inside, outside = np.sort(_energies("id_energies", id_energies)), _energies("ood_energies", ood_energies)
    left, right = (np.searchsorted(inside, outside, side=side) for side in ("left", "right"))
    rng = np.random.Generator(np.random.PCG64(seed))
    chunk = max(1, BOOTSTRAP_ELEMENTS // (len(inside) + len(outside)))
    parts = []
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        running = np.zeros((rows, len(inside) + 1))
        np.cumsum(_multiplicities(len(inside), rows, rng), axis=1, out=running[:, 1:])
        times = _multiplicities(len(outside), rows, rng)
        wins = (times * (running[:, left] + running[:, right])).sum(axis=1)
        parts.append(wins / (2.0 * len(inside) * len(outside)))
    return np.concatenate(parts)


def auroc_interval(
    id_energies: npt.ArrayLike, ood_energies: npt.ArrayLike, seed: int, resamples: int = RESAMPLES
) -> Interval:
    """95% percentile bootstrap interval of the AUROC.

    Separated sets give [1, 1]: resampling cannot show an overlap that the data do not have.
    """
    return _interval(auroc_resamples(id_energies, ood_energies, seed, resamples))


def aupr_balanced(id_energies: npt.ArrayLike, ood_energies: npt.ArrayLike) -> float:
    """Average precision, outliers positive, with `precision = TPR/(TPR + FPR)`: the value at equal class sizes.

    Plain AUPR depends on how many outliers one happens to have. Ties enter as one threshold; no interpolation
    (Davis and Goadrich 2006). 1/2 for an energy that tells nothing.
    """
    inside, outside = _energies("id_energies", id_energies), _energies("ood_energies", ood_energies)
    thresholds = np.unique(outside)[::-1]  # recall moves at outliers only
    tpr, fpr = _fraction_at_least(outside, thresholds), _fraction_at_least(inside, thresholds)
    return float((np.diff(tpr, prepend=0.0) * tpr / (tpr + fpr)).sum())


def fpr_at_tpr(
    positive_scores: npt.ArrayLike, negative_scores: npt.ArrayLike, tpr: float = TRUE_POSITIVE_RATE
) -> float:
    """Fraction of negatives at or above the highest threshold that reaches the true positive rate; high = positive.

    Raises:
        ValueError: scores unusable, or `tpr` not within (0, 1].
    """
    if not 0.0 < tpr <= 1.0:
        raise ValueError(f"tpr must be within (0, 1], got {tpr}")
    positive = np.sort(_energies("positive_scores", positive_scores))
    negative = _energies("negative_scores", negative_scores)
    # The smallest k with k/n >= tpr, by that very comparison: tpr * n may round up across an integer.
    needed = int(np.argmax(np.arange(1, len(positive) + 1) / len(positive) >= tpr)) + 1
    return float((negative >= positive[len(positive) - needed]).mean())


def kolmogorov_smirnov(id_energies: npt.ArrayLike, ood_energies: npt.ArrayLike) -> float:
    """Two-sample Kolmogorov-Smirnov statistic `max |F_id - F_ood|`, 0..1 (VDRME, figure 4)."""
    inside, outside = _energies("id_energies", id_energies), _energies("ood_energies", ood_energies)
    points = np.union1d(inside, outside)
    return float(np.abs(_fraction_at_least(inside, points) - _fraction_at_least(outside, points)).max())


def cohens_d(id_energies: npt.ArrayLike, ood_energies: npt.ArrayLike) -> float:
    """`(mean_ood - mean_id)/s`, with s pooled over unbiased variances weighted by their degrees of freedom.

    Where nothing varies: 0 for equal means, else infinite.
    """
    inside, outside = _energies("id_energies", id_energies), _energies("ood_energies", ood_energies)
    difference = float(outside.mean() - inside.mean())
    squares = sum(float(np.square(values - values.mean()).sum()) for values in (inside, outside))
    if squares == 0.0:
        return 0.0 if difference == 0.0 else float(np.copysign(np.inf, difference))
    return difference / float(np.sqrt(squares / (len(inside) + len(outside) - 2)))


@dataclass(frozen=True)
class DetectionResult:
    """One line of the published table: an energy on one set.

    metrics: means over the seeds.
    auroc_interval: 95% bootstrap interval over images and, where the set is seeded, seeds.
    """

    name: str
    category: Category
    id_count: int
    ood_count: int
    seeds: tuple[int, ...]
    metrics: DetectionMetrics
    auroc_interval: Interval


def evaluate(
    energy: EnergyFunction,
    id_images: Images,
    seeds: Iterable[int] = range(5),
    sets: Sequence[OodSet] = OOD_SETS,
    resamples: int = RESAMPLES,
) -> list[DetectionResult]:
    """Score in-distribution images against every set made from them.

    energy: images (n, channels, size, size) float32 in [-1, 1] -> (n,), high = out-of-distribution.
    id_images: test images, which neither training nor calibration has seen.
    seeds: one draw of each seeded set a seed (SPEC 8 asks for at least 5); also seeds the bootstrap.
    resamples: bootstrap resamples in all, shared out over the seeds.

    Raises:
        ValueError: no seeds, or energies that are not finite or not (n,).
    """
    seeds = tuple(seeds)
    if not seeds:
        raise ValueError("seeds must hold at least one seed")
    inside = _scored(energy, id_images)
    results = []
    for ood_set in sets:
        drawn: list[DetectionMetrics] = []
        resampled: list[Array] = []
        outside = None
        for seed in seeds:
            if outside is None or ood_set.seeded:
                outside = _scored(energy, ood_set.images(id_images, seed))
            drawn.append(detection_metrics(inside, outside))
            resampled.append(auroc_resamples(inside, outside, seed, -(-resamples // len(seeds))))
        results.append(
            DetectionResult(
                name=ood_set.name,
                category=ood_set.category,
                id_count=len(inside),
                ood_count=len(id_images),
                seeds=seeds,
                metrics=_mean(drawn),
                auroc_interval=_interval(np.concatenate(resampled)),
            )
        )
    return results


def _mean(rows: Sequence[DetectionMetrics]) -> DetectionMetrics:
    fields = DetectionMetrics.__dataclass_fields__
    return DetectionMetrics(**{name: float(np.mean([getattr(row, name) for row in rows])) for name in fields})


def _scored(energy: EnergyFunction, images: Images) -> Array:
    values = _energies("energies", energy(images))
    if len(values) != len(images):
        raise ValueError(f"energies must be ({len(images)},), one an image, got shape {values.shape}")
    return values


def _energies(name: str, values: npt.ArrayLike) -> Array:
    energies = np.asarray(values, dtype=np.float64)
    if energies.ndim != 1 or len(energies) == 0:
        raise ValueError(f"{name} must be (n,) with n >= 1, got shape {energies.shape}")
    if not np.isfinite(energies).all():
        raise ValueError(f"{name} must be finite")
    return energies


def _fraction_at_least(values: Array, thresholds: Array) -> Array:
    ordered = np.sort(values)
    fraction: Array = 1.0 - np.searchsorted(ordered, thresholds, side="left") / len(ordered)
    return fraction


def _multiplicities(count: int, rows: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """How often each of `count` items occurs in each of `rows` resamples of that size; (rows, count)."""
    chosen = rng.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
    return np.bincount(chosen.ravel(), minlength=rows * count).reshape(rows, count)


def _interval(resamples: Array) -> Interval:
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(resamples, (tail, 1.0 - tail))
    return Interval(float(low), float(high))
