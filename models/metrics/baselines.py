"""Classical detectors beside which a trained energy is published (SPEC 8), with the same interface.

Each `fit_*` takes the training images (n, channels, height, width) and returns an `EnergyFunction`:
images -> (n,) float64, high = out-of-distribution. Settings are conventional ones; none was tuned on outliers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors

from .ood import EnergyFunction
from .outliers import Images

Array = npt.NDArray[np.float64]
Classify = Callable[[Images], Array]
"""Images (n, channels, height, width) -> logits (n, classes)."""


def fit_nearest_neighbours(train: Images, neighbours: int = 5) -> EnergyFunction:
    """Euclidean pixel distance to the k-th nearest training image (Sun et al. 2022, arXiv 2204.06507)."""
    index = NearestNeighbors(n_neighbors=neighbours).fit(_flat(train))

    def energy(images: Images) -> Array:
        distances, _ = index.kneighbors(_flat(images))
        return np.asarray(distances[:, -1], dtype=np.float64)

    return energy


def fit_mahalanobis(train: Images, components: int = 20) -> EnergyFunction:
    """Mahalanobis distance under probabilistic PCA: `-log p`, with the discarded directions as isotropic noise.

    Tipping and Bishop 1999. Within the principal subspace alone an image far outside it would look normal.
    """
    model = PCA(n_components=components, svd_solver="full").fit(_flat(train))

    def energy(images: Images) -> Array:
        return np.asarray(-model.score_samples(_flat(images)), dtype=np.float64)

    return energy


def fit_gaussian_mixture(
    train: Images, mixture_components: int = 10, principal_components: int = 20, seed: int = 0
) -> EnergyFunction:
    """`-log p` of a mixture of full Gaussians, one component a digit, in principal components.

    The squared residual outside the principal subspace is added at its training variance, as in `fit_mahalanobis`.
    """
    pixels = _flat(train)
    projection = PCA(n_components=principal_components, svd_solver="full").fit(pixels)
    mixture = GaussianMixture(mixture_components, reg_covar=1e-3, random_state=seed).fit(projection.transform(pixels))

    def energy(images: Images) -> Array:
        coordinates = projection.transform(_flat(images))
        residual = np.square(_flat(images) - projection.inverse_transform(coordinates)).sum(axis=1)
        return np.asarray(residual / (2.0 * projection.noise_variance_) - mixture.score_samples(coordinates))

    return energy


def maximum_softmax(classify: Classify) -> EnergyFunction:
    """`-log max softmax` of a classifier of the training images (Hendrycks and Gimpel 2017, arXiv 1610.02136).

    The logarithm keeps the order; computed from logits, saturated images do not tie at probability 1.
    """

    def energy(images: Images) -> Array:
        logits = classify(images)
        others = np.sort(logits - logits.max(axis=1, keepdims=True), axis=1)[:, :-1]
        return np.log1p(np.exp(logsumexp(others, axis=1)))

    return energy


def fit_baselines(train: Images, classify: Classify, seed: int = 0) -> dict[str, EnergyFunction]:
    """Every baseline by name, fitted to the training images, on which `classify` was trained too."""
    return {
        "nearest-neighbours": fit_nearest_neighbours(train),
        "mahalanobis": fit_mahalanobis(train),
        "gaussian-mixture": fit_gaussian_mixture(train, seed=seed),
        "maximum-softmax": maximum_softmax(classify),
    }


def _flat(images: Images) -> Array:
    return np.asarray(images, dtype=np.float64).reshape(len(images), -1)
