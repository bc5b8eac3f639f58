"""Calibration: conformal p-values and decisions from held-out energies (SPEC 8)."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.calibrate import Calibration, calibrate, combined_p_value

COARSE = st.integers(-4, 4).map(lambda value: value / 2)  # few values, hence many ties


def test_p_values_of_a_small_example_are_exact():
    """`(1 + #{calibration >= U})/(n + 1)`, ties counted, from 1/(n + 1) to 1."""
    calibration = Calibration(np.array([3.0, 1.0, 2.0, 2.0]))
    scored = calibration.p_value([[0.0, 1.0], [2.0, 2.5], [3.0, np.inf]])
    np.testing.assert_array_equal(scored, np.array([[5, 5], [4, 2], [2, 1]]) / 5)


def test_percentile_counts_energies_at_or_below():
    """The percentile is the share of calibration energies that are not above, in percent."""
    calibration = Calibration(np.array([3.0, 1.0, 2.0, 2.0]))
    np.testing.assert_array_equal(calibration.percentile([0.5, 1.0, 2.0, 2.5, 9.0]), [0, 25, 75, 75, 100])
    assert calibration.percentile(2.0).shape == ()


@given(
    energies=st.lists(COARSE, min_size=1, max_size=40),
    scored=st.lists(COARSE, min_size=1, max_size=10),
    rate=st.one_of(st.floats(0.001, 0.999), st.integers(1, 40).map(lambda k: k / 41)),
)
def test_decision_is_the_p_value_compared_with_the_rate(energies, scored, rate):
    """Decision, threshold and p-value never contradict each other, ties and rounding included."""
    calibration = Calibration(np.array(energies))
    if rate < 1 / (len(energies) + 1):
        with pytest.raises(ValueError, match="calibration energies"):
            calibration.threshold(rate)
        return
    np.testing.assert_array_equal(calibration.decision(scored, rate), calibration.p_value(scored) <= rate)
    np.testing.assert_array_equal(calibration.decision(scored, rate), np.array(scored) > calibration.threshold(rate))


@pytest.mark.parametrize("rate", [k / 100 for k in range(1, 100)])
def test_threshold_rank_survives_rounding(rate):
    """Out of 99 distinct energies exactly `100 rate - 1` lie above the threshold, also at 0.29 and 0.57."""
    calibration = Calibration(np.arange(99.0))
    assert int(calibration.decision(np.arange(99.0), rate).sum()) == round(100 * rate) - 1


def test_p_values_of_exchangeable_data_are_super_uniform():
    """P(p <= a) <= a for tied and untied energies, within four standard errors of 4000 independent trials."""
    rng = np.random.default_rng(1)
    trials, count = 4000, 49
    for draw in (rng.standard_normal, lambda shape: rng.integers(0, 6, shape).astype(float)):
        energies = draw((trials, count + 1))
        p = np.array([float(Calibration(row[:-1]).p_value(row[-1])) for row in energies])
        for a in (0.02, 0.05, 0.1, 0.25, 0.5, 0.9):
            assert (p <= a).mean() <= a + 4 * np.sqrt(a * (1 - a) / trials)


def test_false_alarm_rate_of_continuous_energies_is_met_and_not_undershot():
    """Without ties the rate is floor(a(n + 1))/(n + 1) exactly: 4000 trials agree within four standard errors."""
    rng = np.random.default_rng(2)
    trials, count, rate = 4000, 49, 0.05
    energies = rng.gumbel(size=(trials, count + 1))
    alarms = np.mean([bool(Calibration(row[:-1]).decision(row[-1], rate)) for row in energies])
    expected = np.floor(rate * (count + 1)) / (count + 1)
    assert abs(alarms - expected) < 4 * np.sqrt(expected * (1 - expected) / trials)


def test_one_calibration_set_scatters_as_documented():
    """For a fixed calibration set the false-alarm rate has the standard deviation sqrt(a(1 - a)/(n + 2))."""
    rng = np.random.default_rng(3)
    rate, count = 0.05, 399
    # The energy is its own distribution function for uniform draws, so the rate given a set is 1 - threshold.
    rates = [1 - Calibration(rng.uniform(size=count)).threshold(rate) for _ in range(2000)]
    assert np.mean(rates) == pytest.approx(rate, abs=0.001)
    assert np.std(rates) == pytest.approx(np.sqrt(rate * (1 - rate) / (count + 2)), rel=0.08)


def test_smallest_rate_is_named_by_the_error():
    """A rate below 1/(n + 1) is refused with the number of energies that it needs, which then suffice."""
    with pytest.raises(ValueError, match=r"0\.01 needs at least 99 calibration energies, got 98"):
        Calibration(np.arange(98.0)).threshold(0.01)
    assert Calibration(np.arange(99.0)).threshold(0.01) == 98.0


@pytest.mark.parametrize("rate", [1e-300, 5e-324, 1e-10])
def test_a_rate_that_nothing_suffices_for_is_refused_in_a_line(rate):
    """The number of energies is not written out in hundreds of digits, and the caller names the field, once."""
    with pytest.raises(ValueError, match=r"^a rate of \S+ needs over 1e\+09 calibration energies, got 98$"):
        Calibration(np.arange(98.0)).threshold(rate)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 5.0, float("nan")])
def test_rates_outside_the_unit_interval_are_refused(rate):
    """A false-alarm rate is a probability strictly between 0 and 1."""
    with pytest.raises(ValueError, match=r"within \(0, 1\)"):
        Calibration(np.arange(99.0)).threshold(rate)


@pytest.mark.parametrize(
    ("energies", "message"),
    [([], "n >= 1"), ([[1.0, 2.0]], r"shape \(1, 2\)"), ([1.0, np.nan], "finite"), ([np.inf, 1.0, -np.inf], "got 2")],
)
def test_unusable_calibration_energies_are_refused(energies, message):
    """Calibration energies must be a finite, non-empty list."""
    with pytest.raises(ValueError, match=message):
        Calibration(np.array(energies))


def test_nan_is_not_scored():
    """NaN has no rank, so it is refused instead of passing as in-distribution."""
    for method in ("p_value", "percentile"):
        with pytest.raises(ValueError, match="NaN"):
            getattr(Calibration(np.arange(9.0)), method)([0.0, np.nan])


def test_calibration_keeps_its_own_read_only_copy():
    """Changing the array that it was built from changes nothing."""
    source = np.array([2.0, 1.0])
    calibration = Calibration(source)
    source[:] = 7.0
    np.testing.assert_array_equal(calibration.energies, [1.0, 2.0])
    with pytest.raises(ValueError, match="read-only"):
        calibration.energies[0] = 0.0


def test_scales_are_calibrated_each_by_itself():
    """Each scale ranks against its own energies; a faulty scale is named, and all must have scored the same images."""
    scales = calibrate({"t0": [1.0, 2.0, 3.0], "t250": [100.0, 200.0, 300.0]})
    assert float(scales["t0"].p_value(50.0)) == 0.25
    assert float(scales["t250"].p_value(50.0)) == 1.0
    with pytest.raises(ValueError, match="'t250'"):
        calibrate({"t0": [1.0], "t250": [np.nan]})
    with pytest.raises(ValueError, match="same images"):
        calibrate({"t0": [1.0], "t250": [1.0, 2.0]})


def test_combined_p_value_is_valid_over_dependent_scales():
    """Bonferroni over four correlated scales keeps P(p <= a) <= a, where the bare minimum does not."""
    rng = np.random.default_rng(4)
    trials, count, scales, rate = 3000, 99, 4, 0.05
    shared = rng.standard_normal((trials, 1, count + 1))
    energies = shared + rng.standard_normal((trials, scales, count + 1))
    p = np.array([[float(Calibration(row[:-1]).p_value(row[-1])) for row in trial] for trial in energies]).T
    slack = 4 * np.sqrt(rate * (1 - rate) / trials)
    assert (combined_p_value(p) <= rate).mean() <= rate + slack
    assert (p.min(axis=0) <= rate).mean() > rate + slack


def test_combined_p_value_of_a_small_example():
    """min(1, scales * smallest), per image."""
    np.testing.assert_array_equal(combined_p_value([[0.01, 0.5], [0.25, 0.75]]), [0.02, 1.0])
    with pytest.raises(ValueError, match="scales >= 1"):
        combined_p_value([])


def test_importing_calibration_loads_numpy_only():
    """The server imports this module, so it must not pull in torch, scipy or scikit-learn."""
    code = "import sys, models.calibrate; print(sorted({'torch', 'scipy', 'sklearn'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
