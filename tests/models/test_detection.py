"""Detection metrics against brute force and closed forms, and the baselines (SPEC 8)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from sklearn.metrics import average_precision_score, roc_curve

from models.metrics import ood
from models.metrics.baselines import (
    fit_baselines,
    fit_gaussian_mixture,
    fit_mahalanobis,
    fit_nearest_neighbours,
    maximum_softmax,
)
from models.metrics.ood import evaluate
from models.metrics.outliers import OOD_SETS

TIED = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=30)

BY_NAME = {ood_set.name: ood_set for ood_set in OOD_SETS}


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
