"""FD-digits, out-of-distribution sets, detection metrics and baselines (SPEC 8)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.stats import ks_2samp
from sklearn.metrics import average_precision_score, roc_curve

from models.bundle import BundleError
from models.data import load_digits_split
from models.metrics import ood
from models.metrics.baselines import (
    fit_baselines,
    fit_gaussian_mixture,
    fit_mahalanobis,
    fit_nearest_neighbours,
    maximum_softmax,
)
from models.metrics.frechet import FrechetDigits, Moments, frechet_distance
from models.metrics.ood import OOD_SETS, evaluate
from models.train.classifier import Recipe, shift_images, train_classifier

TIED = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=30)
BY_NAME = {ood_set.name: ood_set for ood_set in OOD_SETS}


@pytest.fixture(scope="module")
def split():
    return load_digits_split()


@pytest.fixture(scope="module")
def digits():
    return FrechetDigits.load()


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


# Out-of-distribution sets


@pytest.mark.parametrize("name", BY_NAME)
def test_set_is_deterministic_and_in_range(name, split):
    """Same seed, same bytes; another seed another draw if the set is seeded; float32 in [-1, 1]; sources untouched."""
    sources = split.test.images[:50].copy()
    ood_set = BY_NAME[name]
    made = ood_set.images(sources, seed=3)
    assert made.dtype == np.float32
    assert made.shape == sources.shape
    assert np.abs(made).max() <= 1.0
    np.testing.assert_array_equal(made, ood_set.images(sources, seed=3))
    assert np.array_equal(made, ood_set.images(sources, seed=4)) != ood_set.seeded
    np.testing.assert_array_equal(sources, split.test.images[:50])


def test_every_category_has_a_set():
    """Near, shifted, far and trap are all there, under unique names."""
    assert {ood_set.category for ood_set in OOD_SETS} == {"near", "shifted", "far", "trap"}
    assert len(BY_NAME) == len(OOD_SETS)


def test_averages_mix_two_different_images():
    """Each image is the mean of its source and of another source."""
    sources = np.zeros((20, 1, 20, 20), dtype=np.float32)
    sources[np.arange(20), 0, 0, np.arange(20)] = 1.0
    marks = BY_NAME["averages"].images(sources, 0)[:, 0, 0]
    assert (np.diag(marks) == 0.5).all()
    assert ((marks == 0.5).sum(axis=1) == 2).all()
    with pytest.raises(ValueError, match="at least 2"):
        BY_NAME["averages"].images(sources[:1], 0)


def test_shifted_sets_undo(split):
    """Four quarter turns and two inversions give the image back; a blur keeps the mean of an inner spot."""
    sources = split.test.images[:10]
    turned = sources
    for _ in range(4):
        turned = BY_NAME["rotation"].images(turned, 0)
    np.testing.assert_array_equal(turned, sources)
    inverted = BY_NAME["inversion"].images(sources, 0)
    np.testing.assert_array_equal(BY_NAME["inversion"].images(inverted, 0), sources)
    spot = np.full((1, 1, 9, 9), -1.0, dtype=np.float32)
    spot[0, 0, 4, 4] = 1.0
    blurred = BY_NAME["blur"].images(spot, 0)
    assert (blurred + 1).sum() == pytest.approx(2.0, abs=1e-4)
    assert blurred[0, 0, 4, 5] - blurred[0, 0, 0, 0] == pytest.approx(2 * 0.3989**2 * np.exp(-0.5), rel=0.01)


def test_permutation_keeps_each_image_s_grey_values(split):
    """Pixels move within their image, each image by an order of its own."""
    sources = np.tile(np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8), (5, 1, 1, 1))
    made = BY_NAME["permuted"].images(sources, 0).reshape(5, 64)
    np.testing.assert_array_equal(np.sort(made, axis=1), sources.reshape(5, 64))
    assert len(np.unique(made, axis=0)) == 5


def test_gaussian_matches_each_pixel():
    """Mean and deviation per pixel are the sources', within four standard errors; a dead pixel stays dead."""
    rng = np.random.default_rng(6)
    mean, deviation = rng.uniform(-0.2, 0.2, (1, 1, 8, 8)), rng.uniform(0.05, 0.15, (1, 1, 8, 8))
    deviation[0, 0, 0, 0] = 0.0
    sources = np.clip(mean + deviation * rng.standard_normal((4000, 1, 8, 8)), -1, 1).astype(np.float32)
    made = BY_NAME["gaussian"].images(sources, 0)
    spread = sources.std(axis=0)
    assert (np.abs(made.mean(axis=0) - sources.mean(axis=0)) <= 4 * spread / np.sqrt(4000) + 1e-6).all()
    assert (np.abs(made.std(axis=0) - spread) <= 4 * spread / np.sqrt(8000) + 1e-6).all()


def test_stripes_have_two_levels_and_a_direction():
    """Every image is black and white, and its stripes are 1 to 3 pixels wide: both levels occur in each."""
    made = BY_NAME["stripes"].images(np.zeros((200, 1, 8, 8), dtype=np.float32), 0)
    assert set(np.unique(made)) == {-1.0, 1.0}
    assert (made.min(axis=(1, 2, 3)) == -1.0).all()
    assert (made.max(axis=(1, 2, 3)) == 1.0).all()


def test_photograph_crops_are_pieces_of_the_photographs():
    """Both photographs ship inside scikit-learn, and a crop is found in one of them."""
    photographs = ood._photographs()
    assert [photograph.shape for photograph in photographs] == [(427, 640), (427, 640)]
    crop = BY_NAME["photographs"].images(np.zeros((1, 1, 8, 8), dtype=np.float32), 0)[0, 0]
    found = []
    for photograph in photographs:
        windows = np.lib.stride_tricks.sliding_window_view(photograph.astype(np.float32), (8, 8))
        found.append(bool(np.any(np.all(windows == crop, axis=(2, 3)))))
    assert any(found)


def test_constants_cover_all_grey_values():
    """Constant images run from -1 to 1; the blank ones are all background."""
    made = BY_NAME["constant"].images(np.zeros((5, 1, 8, 8), dtype=np.float32), 0)
    np.testing.assert_array_equal(made[:, 0], np.broadcast_to(np.linspace(-1, 1, 5)[:, None, None], (5, 8, 8)))
    assert (BY_NAME["blank"].images(made, 0) == -1.0).all()


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (np.zeros((3, 8, 8)), r"got shape \(3, 8, 8\)"),
        (np.full((3, 1, 8, 8), 1.5), "within"),
        (np.full((3, 1, 8, 8), np.nan), "within"),
    ],
)
def test_sets_refuse_bad_sources(sources, message):
    """Sources must be square images in [-1, 1]."""
    with pytest.raises(ValueError, match=message):
        BY_NAME["rotation"].images(sources.astype(np.float32), 0)


def test_selected_digits_keep_images_with_their_labels(split):
    """The two halves of the 0-4 against 5-9 protocol are disjoint and complete."""
    low, high = split.test.select(range(5)), split.test.select(range(5, 10))
    assert set(low.labels) == set(range(5))
    assert len(low) + len(high) == len(split.test)
    np.testing.assert_array_equal(low.images, split.test.images[split.test.labels < 5])


def test_unseen_digits_are_real_ones_drawn_anew_by_each_seed(split):
    """As many images as are asked for, each at most once, all from the pool; a seed says which."""
    pool = split.test.select(range(5, 10)).images
    outside = ood.unseen_digits(pool)
    sources = split.test.select(range(5)).images[:50]
    first, again, other = (outside.images(sources, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    places = [np.flatnonzero((pool == image).all(axis=(1, 2, 3))) for image in first]
    assert all(len(place) > 0 for place in places)
    assert len({int(place[0]) for place in places}) == len(sources)


# Detection metrics


@given(inside=TIED, outside=TIED)
def test_auroc_equals_brute_force_over_all_pairs(inside, outside):
    """Ties count half: the mean over all pairs of 1, 1/2 or 0."""
    difference = np.subtract.outer(outside, inside)
    pairs = (difference > 0) + 0.5 * (difference == 0)
    assert ood.auroc(inside, outside) == pytest.approx(pairs.mean(), abs=1e-12)


@given(inside=TIED, outside=TIED)
def test_exchanging_the_sets_mirrors_the_metrics(inside, outside):
    """AUROC goes to 1 - AUROC, Cohen's d changes sign, Kolmogorov-Smirnov stays."""
    forth, back = ood.detection_metrics(inside, outside), ood.detection_metrics(outside, inside)
    assert forth.auroc == pytest.approx(1 - back.auroc, abs=1e-12)
    assert forth.ks == pytest.approx(back.ks, abs=1e-12)
    assert forth.cohens_d == pytest.approx(-back.cohens_d)


@settings(max_examples=40)
@given(inside=TIED, outside=TIED)
def test_ks_agrees_with_scipy(inside, outside):
    """The statistic is that of scipy's two-sample test."""
    with np.errstate(divide="ignore", invalid="ignore"):  # scipy's p-value, not used here, divides by n m/(n + m) = 0.5
        expected = ks_2samp(inside, outside, method="asymp").statistic
    assert ood.kolmogorov_smirnov(inside, outside) == pytest.approx(expected, abs=1e-12)


@given(inside=TIED, outside=TIED)
def test_balanced_aupr_is_average_precision_with_class_weights(inside, outside):
    """Agrees with scikit-learn's when each set gets half of the weight."""
    truth = [0] * len(inside) + [1] * len(outside)
    weights = [1 / len(inside)] * len(inside) + [1 / len(outside)] * len(outside)
    expected = average_precision_score(truth, inside + outside, sample_weight=weights)
    assert ood.aupr_balanced(inside, outside) == pytest.approx(expected, abs=1e-9)


@given(positive=TIED, negative=TIED, tpr=st.sampled_from([0.25, 0.5, 0.95, 1.0]))
def test_fpr_is_the_first_point_of_the_roc_curve_that_reaches_the_tpr(positive, negative, tpr):
    """Agrees with scikit-learn's ROC curve, ties included."""
    truth = [1] * len(positive) + [0] * len(negative)
    false, true, _ = roc_curve(truth, positive + negative, drop_intermediate=False)
    assert ood.fpr_at_tpr(positive, negative, tpr) == pytest.approx(false[np.argmax(true >= tpr)], abs=1e-12)


def test_both_fpr95s_on_a_hand_made_example():
    """Twenty in-distribution energies 0..19 and four outliers: the two definitions differ, each as counted by hand."""
    inside, outside = np.arange(20.0), np.array([5.5, 18.0, 18.5, 30.0])
    metrics = ood.detection_metrics(inside, outside)
    # 95% of the data are accepted at U <= 18: so are the outliers 5.5 and 18.
    assert metrics.fpr95_id_positive == 0.5
    # 95% of four outliers means all four, from 5.5 on: 14 of the 20 (6..19) are rejected with them.
    assert metrics.fpr95_ood_positive == 0.7


def test_separated_and_identical_sets_reach_the_ends_of_every_scale():
    """Perfect detection gives 1, 1, 0, 0, 1; identical sets 1/2, about 1/2, about 0.95, 0 and d = 0."""
    inside = np.arange(100.0)
    best = ood.detection_metrics(inside, inside + 1000)
    assert (best.auroc, best.aupr_balanced, best.fpr95_id_positive, best.fpr95_ood_positive, best.ks) == (1, 1, 0, 0, 1)
    none = ood.detection_metrics(inside, inside)
    assert (none.auroc, none.ks, none.cohens_d) == (0.5, 0.0, 0.0)
    assert none.aupr_balanced == pytest.approx(0.5, abs=1e-9)
    assert none.fpr95_id_positive == none.fpr95_ood_positive == 0.95


def test_balanced_aupr_ignores_how_many_outliers_there_are():
    """Repeating every outlier ten times changes nothing."""
    rng = np.random.default_rng(7)
    inside, outside = rng.normal(size=50), rng.normal(1, 1, 20)
    assert ood.aupr_balanced(inside, np.repeat(outside, 10)) == pytest.approx(ood.aupr_balanced(inside, outside))


def test_cohens_d_of_a_small_example():
    """Means 2 and 5, pooled variance 2.4 over 5 degrees of freedom; infinite if nothing varies."""
    # squares: (1 + 0 + 1) + (4 + 1 + 1 + 4) = 12 over 3 + 4 - 2 = 5
    assert ood.cohens_d([1, 2, 3], [3, 4, 6, 7]) == pytest.approx(3 / np.sqrt(12 / 5))
    assert ood.cohens_d([1, 1], [2, 2]) == np.inf
    assert ood.cohens_d([1, 1], [0]) == -np.inf
    assert ood.cohens_d([1], [1]) == 0.0


def test_bootstrap_resamples_equal_auroc_of_the_same_draws():
    """The running-sum form gives what `auroc` gives on each resample written out, ties included."""
    rng = np.random.default_rng(8)
    inside, outside = rng.integers(0, 5, 30).astype(float), rng.integers(2, 7, 20).astype(float)
    replay = np.random.Generator(np.random.PCG64(11))
    rows_inside = np.sort(inside)[replay.integers(30, size=(40, 30))]
    rows_outside = outside[replay.integers(20, size=(40, 20))]
    expected = [ood.auroc(a, b) for a, b in zip(rows_inside, rows_outside, strict=True)]
    np.testing.assert_allclose(ood.auroc_resamples(inside, outside, seed=11, resamples=40), expected, atol=1e-12)


def test_bootstrap_interval_covers_the_true_auroc():
    """Of 200 intervals for Gaussians with AUROC Phi(1/sqrt 2), about 95% cover it (at least 89%)."""
    rng = np.random.default_rng(9)
    truth = 0.7602499389065233
    covered = 0
    for trial in range(200):
        interval = ood.auroc_interval(rng.normal(size=80), rng.normal(1, 1, 80), seed=trial, resamples=400)
        covered += interval.low <= truth <= interval.high
    assert covered >= 178


def test_bootstrap_is_seeded_and_chunks_do_not_matter_for_its_size(monkeypatch):
    """Same seed, same interval; small chunks still give all resamples."""
    rng = np.random.default_rng(10)
    inside, outside = rng.normal(size=40), rng.normal(1, 1, 50)
    assert ood.auroc_interval(inside, outside, 1) == ood.auroc_interval(inside, outside, 1)
    monkeypatch.setattr(ood, "BOOTSTRAP_ELEMENTS", 300)
    assert ood.auroc_resamples(inside, outside, 1, resamples=10).shape == (10,)


@pytest.mark.parametrize(
    ("energies", "message"), [([], "n >= 1"), ([[1.0]], "shape"), ([np.nan], "finite"), ([np.inf], "finite")]
)
def test_metrics_refuse_unusable_energies(energies, message):
    """Empty, nested or non-finite energies are named by argument."""
    with pytest.raises(ValueError, match=message):
        ood.auroc([1.0], energies)
    with pytest.raises(ValueError, match="id_energies"):
        ood.detection_metrics(energies, [1.0])


# Evaluation and baselines


def test_evaluate_averages_over_seeds_and_brackets_its_mean(split):
    """A row holds the mean over seeds of the metrics of each draw, inside its interval."""
    images = split.test.images[:100]
    chosen = [BY_NAME["gaussian"], BY_NAME["blur"]]
    rows = evaluate(lambda batch: batch.mean(axis=(1, 2, 3)), images, seeds=(0, 1, 2), sets=chosen)
    assert [row.name for row in rows] == ["gaussian", "blur"]
    for row, ood_set in zip(rows, chosen, strict=True):
        values = [
            ood.auroc(images.mean(axis=(1, 2, 3)), ood_set.images(images, seed).mean(axis=(1, 2, 3)))
            for seed in range(3)
        ]
        assert row.metrics.auroc == pytest.approx(np.mean(values))
        assert row.auroc_interval.low < row.metrics.auroc < row.auroc_interval.high
        assert (row.id_count, row.ood_count, row.seeds) == (100, 100, (0, 1, 2))


def test_evaluate_refuses_an_energy_of_the_wrong_shape(split):
    """An energy function must return one finite number an image, and seeds must be given."""
    images = split.test.images[:10]
    with pytest.raises(ValueError, match=r"\(10,\)"):
        evaluate(lambda batch: np.zeros(3), images)
    with pytest.raises(ValueError, match="seed"):
        evaluate(lambda batch: np.zeros(len(batch)), images, seeds=())


def test_baselines_detect_the_far_sets(digits, split):
    """Density and distance baselines reach 0.95 on every far set; the softmax detector stays above 0.8."""
    far = [ood_set for ood_set in OOD_SETS if ood_set.category == "far"]
    for name, energy in fit_baselines(split.train.images, digits.logits).items():
        bound = 0.8 if name == "maximum-softmax" else 0.95
        for row in evaluate(energy, split.test.images[:200], seeds=(0,), sets=far, resamples=50):
            assert row.metrics.auroc >= bound, (name, row.name)


def test_nearest_neighbour_energy_is_the_kth_distance(split):
    """A training image is its own first neighbour; the k-th is found by brute force."""
    train = split.train.images[:100]
    assert fit_nearest_neighbours(train, 1)(train).max() == 0.0
    image = split.test.images[:1]
    distances = np.sort(np.sqrt(np.square(train.astype(np.float64) - image).sum(axis=(1, 2, 3))))
    assert fit_nearest_neighbours(train, 3)(image)[0] == pytest.approx(distances[2])


def test_density_baselines_recover_a_known_gaussian():
    """On data of a probabilistic-PCA model both energies order points as the exact -log p does."""
    rng = np.random.default_rng(12)
    deviations = np.concatenate([np.full(3, 0.3), np.full(13, 0.02)])
    train, fresh = (
        (deviations * rng.standard_normal((n, 16))).reshape(n, 1, 4, 4).astype(np.float32) for n in (4000, 500)
    )
    exact = 0.5 * np.square(fresh.reshape(500, 16) / deviations).sum(axis=1)
    for energy in (fit_mahalanobis(train, 3), fit_gaussian_mixture(train, 1, 3)):
        difference = energy(fresh) - exact
        assert difference.std() < 0.15


def test_maximum_softmax_energy_keeps_its_order_where_probabilities_saturate():
    """The energy is log(1 + sum exp(l - max)), finite and positive where the probability rounds to one."""
    energy = maximum_softmax(lambda _: np.array([[0.0, 0.0], [50.0, 0.0], [60.0, 0.0]]))
    energies = energy(np.zeros((3, 1, 8, 8), dtype=np.float32))
    np.testing.assert_allclose(energies, [np.log(2), np.exp(-50.0), np.exp(-60.0)], rtol=1e-9)
