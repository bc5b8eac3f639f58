"""How well an energy detects out-of-distribution images (SPEC 8); `outliers` has the sets.

The positive class of a detector is a matter of taste and changes some metrics; here names say which it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .outliers import OOD_SETS, Category, Images, OodSet

Array = npt.NDArray[np.float64]
EnergyFunction = Callable[[Images], npt.NDArray[np.floating]]
"""Images (n, channels, height, width) float32 in [-1, 1] -> energies (n,), high = out-of-distribution."""

TRUE_POSITIVE_RATE = 0.95
RESAMPLES = 1000
CONFIDENCE = 0.95
BOOTSTRAP_ELEMENTS = 2_000_000


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
