"""FD-digits: the Frechet distance, and the classifier whose features it is taken of (SPEC 8)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from models.bundle import BundleError
from models.metrics.frechet import FrechetDigits, Moments, frechet_distance
from models.metrics.outliers import OOD_SETS
from models.train.classifier import Recipe, shift_images, train_classifier

BY_NAME = {ood_set.name: ood_set for ood_set in OOD_SETS}


def random_covariance(rng, dimension):
    factor = rng.standard_normal((dimension, dimension))
    return factor @ factor.T / dimension


# The Frechet distance


def test_distance_of_gaussians_with_diagonal_covariances():
    """With commuting covariances the distance is |mu_a - mu_b|^2 + sum (s_a - s_b)^2."""
    a = Moments(np.array([1.0, 0.0, -2.0]), np.diag([4.0, 9.0, 0.25]))
    b = Moments(np.array([0.0, 2.0, -2.0]), np.diag([1.0, 16.0, 0.0]))
    assert frechet_distance(a, b) == pytest.approx(5.0 + 1.0 + 1.0 + 0.25, rel=1e-12)


def test_distance_of_rotated_gaussians_has_its_two_dimensional_closed_form():
    """In two dimensions tr (AB)^(1/2) = sqrt(tr AB + 2 sqrt(det AB)), also if A and B do not commute."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = random_covariance(rng, 2), random_covariance(rng, 2)
        root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
        expected = np.trace(a) + np.trace(b) - 2 * root
        assert frechet_distance(Moments(np.zeros(2), a), Moments(np.zeros(2), b)) == pytest.approx(expected, rel=1e-9)


def test_distance_agrees_with_the_matrix_square_root_and_is_symmetric():
    """The symmetric product gives what scipy's square root of C_a C_b gives, in either order."""
    rng = np.random.default_rng(1)
    a = Moments(rng.standard_normal(12), random_covariance(rng, 12))
    b = Moments(rng.standard_normal(12), random_covariance(rng, 12))
    root = np.trace(sqrtm(a.covariance @ b.covariance)).real
    expected = np.square(a.mean - b.mean).sum() + np.trace(a.covariance + b.covariance) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_distance_to_itself_is_zero_even_if_the_covariance_is_singular():
    """Fewer samples than features is no special case."""
    features = np.random.default_rng(2).standard_normal((10, 64))
    assert frechet_distance(Moments.of(features), Moments.of(features)) == pytest.approx(0.0, abs=1e-6)


def test_distance_of_samples_approaches_that_of_their_gaussians_from_above():
    """The bias of a finite sample is positive and falls about like 1/n."""
    rng = np.random.default_rng(3)
    truth = Moments(np.zeros(16), np.eye(16))
    bias = [
        np.mean([frechet_distance(truth, Moments.of(rng.standard_normal((n, 16)))) for _ in range(10)])
        for n in (200, 400, 800)
    ]
    assert bias[0] > bias[1] > bias[2] > 0
    assert bias[0] / bias[2] == pytest.approx(4.0, rel=0.25)


def test_moments_are_the_unbiased_ones():
    """Mean and covariance are numpy's, computed in float64 from float32 features."""
    features = (1000 + np.random.default_rng(4).standard_normal((50, 3))).astype(np.float32)
    moments = Moments.of(features)
    np.testing.assert_allclose(moments.covariance, np.cov(features.astype(np.float64).T), rtol=1e-10)


@pytest.mark.parametrize(("features", "message"), [(np.zeros((1, 4)), "n >= 2"), (np.full((3, 4), np.nan), "finite")])
def test_moments_refuse_what_has_none(features, message):
    """One sample has no covariance, NaN has no mean."""
    with pytest.raises(ValueError, match=message):
        Moments.of(features)


# FD-digits


def test_training_images_are_at_distance_zero(digits, split):
    """The reference is the train split itself."""
    assert digits.distance(split.train.images) == pytest.approx(0.0, abs=1e-6)


def test_floor_is_the_test_split_and_small(digits, split):
    """Unseen digits score a floor that the calibration split shares, far below any corruption of the same number."""
    assert digits.floor == digits.distance(split.test.images)
    assert digits.distance(split.calibration.images) == pytest.approx(digits.floor, rel=0.2)
    assert digits.distance(BY_NAME["uniform"].images(split.test.images, 0)) > 20 * digits.floor


def test_published_floor_has_not_moved(digits):
    """The classifier is frozen: every published FD-digits stands beside this floor."""
    assert digits.floor == pytest.approx(8.6392, abs=1e-3)


def test_distance_grows_with_corruption(digits, split):
    """More noise, less contrast or a missing digit means a larger distance."""
    images, labels = split.test.images, split.test.labels
    noise = np.random.default_rng(5).standard_normal(images.shape)
    noisy = [digits.distance(images + level * noise) for level in (0.2, 0.6)]
    assert digits.floor < noisy[0] < noisy[1]
    assert digits.distance(0.8 * images) > 2 * digits.floor
    assert digits.distance(images[labels != 1]) > 2 * digits.floor


def test_features_do_not_depend_on_the_batch(digits, split):
    """One image alone, in a batch of seven or among sixty has the same features to 1e-10."""
    images = split.test.images[:60]
    together = digits.features(images)
    apart = np.concatenate([digits.features(images[start : start + 7]) for start in range(0, len(images), 7)])
    np.testing.assert_allclose(together, apart, atol=1e-10)
    np.testing.assert_allclose(together[:1], digits.features(images[:1]), atol=1e-10)


def test_shipped_classifier_knows_digits(digits, split):
    """97% of unseen digits are recognised, and the histogram of predictions follows the labels."""
    assert digits.label_accuracy(split.test.images, split.test.labels) >= 0.97
    counts = np.bincount(split.test.labels, minlength=10)
    assert np.abs(np.array(digits.class_histogram(split.test.images)) - counts).max() <= 5


def test_nearest_distance_is_the_smallest_euclidean_distance(digits, split):
    """Agrees with brute force, and is zero for training images only."""
    images = split.test.images[:5]
    brute = [
        np.sqrt(np.square(split.train.images.astype(np.float64) - image).sum(axis=(1, 2, 3))).min() for image in images
    ]
    np.testing.assert_allclose(digits.nearest_distance(images), brute, rtol=1e-9)
    assert digits.nearest_distance(split.train.images[:20]).max() == 0.0


def test_quality_tells_memory_from_fresh_digits(digits, split):
    """Training images are all close, fresh digits 5% of the time; labels are checked only if given."""
    copied = digits.quality(split.train.images[:200])
    assert (copied.close_fraction, copied.nearest, copied.label_accuracy) == (1.0, 0.0, None)
    fresh = digits.quality(split.test.images, split.test.labels)
    assert fresh.close_fraction == pytest.approx(0.05, abs=0.01)
    assert fresh.frechet == fresh.floor == digits.floor
    assert sum(fresh.class_histogram) == fresh.count == len(split.test)
    assert 0.9 < fresh.confidence <= 1.0
    assert fresh.label_accuracy == digits.label_accuracy(split.test.images, split.test.labels)


def test_bad_images_are_refused(digits):
    """Wrong shape, NaN and labels of another number are named."""
    with pytest.raises(ValueError, match=r"\(n, 1, 8, 8\)"):
        digits.features(np.zeros((2, 64)))
    with pytest.raises(ValueError, match="finite"):
        digits.distance(np.full((2, 1, 8, 8), np.nan))
    with pytest.raises(ValueError, match="labels"):
        digits.label_accuracy(np.zeros((2, 1, 8, 8)), [1])


def test_missing_classifier_is_named(tmp_path):
    """A directory without a checkpoint is an error that names the file."""
    with pytest.raises(BundleError, match=r"checkpoint\.json"):
        FrechetDigits.load(tmp_path)


def test_training_is_reproducible_and_leaves_the_global_stream_alone(split):
    """The same seed gives the same weights, whatever the caller's random state, which stays as it was."""
    recipe = Recipe(steps=3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = train_classifier(split.train, recipe, lambda done, total, losses: None)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    second = train_classifier(split.train, recipe, lambda done, total, losses: None)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_shift_moves_a_ramp_by_less_than_its_maximum():
    """On a linear ramp a shift is an offset: at most `max_shift` pixels, and different for each image."""
    ramp = torch.arange(8.0).expand(50, 1, 8, 8)
    moved = (shift_images(ramp, 0.5, torch.Generator().manual_seed(0)) - ramp)[:, 0, :, 2:6]
    assert torch.allclose(moved, moved[:, :1, :1].expand_as(moved), atol=1e-5)
    assert 0.3 < moved.abs().max() <= 0.5 + 1e-5
    assert moved[:, 0, 0].unique().numel() == 50
