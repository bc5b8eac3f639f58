"""Arrivals are Poisson, fixed before the run, and the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from bench.schedule import Bursts, Poisson, Schedule, parse_arrivals

WEIGHTS = (4.0, 1.0, 5.0)


def poisson(rate: float, seconds: float, weights: tuple[float, ...], seed: int) -> Schedule:
    return Poisson(rate).schedule(seconds, weights, seed)


def test_the_same_arguments_give_the_same_schedule() -> None:
    """A run can be repeated: times, kinds and seeds are equal; another seed changes them."""
    one, two, other = (poisson(100, 10, WEIGHTS, seed) for seed in (1, 1, 2))
    for name in ("at", "kind", "seed"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert len(one) != len(other) or (one.at != other.at).any()


def test_gaps_are_exponential_with_the_mean_of_the_rate() -> None:
    """Number, mean gap and spread of the gaps are those of a Poisson process, within five standard errors."""
    rate, duration = 200.0, 100.0
    schedule = poisson(rate, duration, WEIGHTS, 3)
    expected = rate * duration
    assert abs(len(schedule) - expected) < 5 * np.sqrt(expected)
    gaps = np.diff(schedule.at, prepend=0.0)
    assert gaps.mean() == pytest.approx(1 / rate, rel=5 / np.sqrt(expected))
    assert gaps.std() == pytest.approx(1 / rate, rel=10 / np.sqrt(expected))
    # The distribution itself: the largest gap between empirical and exponential distribution function (alpha 0.001).
    empirical = np.arange(1, len(gaps) + 1) / len(gaps)
    assert np.abs(empirical - (1 - np.exp(-rate * np.sort(gaps)))).max() < 1.95 / np.sqrt(len(gaps))
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 5 / np.sqrt(len(gaps))


def test_arrivals_lie_in_order_within_the_duration() -> None:
    """No arrival is before its predecessor or at the end, however many there are."""
    schedule = poisson(5000, 2, WEIGHTS, 0)
    assert (np.diff(schedule.at) >= 0).all()
    assert schedule.at[0] >= 0
    assert 1.9 < schedule.at[-1] < 2


def test_kinds_come_by_their_weights() -> None:
    """Weights need not sum to 1; each kind gets its share, within five standard errors."""
    schedule = poisson(1000, 20, WEIGHTS, 0)
    shares = np.bincount(schedule.kind, minlength=3) / len(schedule)
    np.testing.assert_allclose(shares, [0.4, 0.1, 0.5], atol=5 * 0.5 / np.sqrt(len(schedule)))


def test_seeds_differ_and_fit_into_json() -> None:
    """Requests draw different noise, and their seeds survive a reader that has doubles only."""
    seeds = poisson(1000, 5, WEIGHTS, 0).seed
    assert len(set(seeds.tolist())) == len(seeds)
    assert seeds.min() >= 0
    assert seeds.max() < 2**53


def test_bursts_are_groups_at_poisson_times() -> None:
    """Groups of one instant, whose kinds differ; the mean rate is that of the requests."""
    schedule = Bursts(400, 8).schedule(50, WEIGHTS, 1)
    groups = schedule.at.reshape(-1, 8)
    assert (groups == groups[:, :1]).all()
    assert len(schedule) == pytest.approx(400 * 50, rel=5 * np.sqrt(8 / (400 * 50)))
    gaps = np.diff(groups[:, 0])
    assert gaps.mean() == pytest.approx(gaps.std(), rel=10 / np.sqrt(len(gaps)))
    assert (np.ptp(schedule.kind.reshape(-1, 8), axis=1) > 0).any()
    # Requests in windows of a second vary by the size of a burst more than those of a Poisson process do.
    counts = np.bincount(schedule.at.astype(int), minlength=50)
    assert 4 < counts.var() / counts.mean() < 14


def test_the_law_of_arrivals_is_read_from_text() -> None:
    """poisson and burst:SIZE, at the rate that is given beside."""
    assert parse_arrivals("poisson", 5) == Poisson(5)
    assert parse_arrivals("burst:16", 5) == Bursts(5, 16)
    for wrong in ("", "burst", "burst:", "burst:-1", "burst:1.5", "poisson:2", "even"):
        with pytest.raises(ValueError, match="arrivals: must be poisson, or burst:SIZE"):
            parse_arrivals(wrong, 5)


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_nothing_to_send_is_refused(rate: float) -> None:
    """A rate of nothing is an error, not an endless loop; no time has no arrivals."""
    with pytest.raises(ValueError, match="rate: must be positive"):
        Poisson(rate)
    assert len(poisson(5, 0, WEIGHTS, 0)) == 0
