"""Percentiles are nearest-rank: exact, and never a value that was not measured."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.percentiles import percentile, percentiles


def test_known_sample() -> None:
    """Of 1..100 in any order, the p-th percentile is p."""
    values = list(range(100, 0, -1))
    assert percentiles(values) == {"p50": 50, "p90": 90, "p99": 99, "max": 100}
    assert percentile(values, 0.5) == 1


def test_small_samples_give_values_that_occurred() -> None:
    """Nothing is interpolated: the median of two is the smaller, the p99 of three is the largest."""
    assert percentile([10, 20], 50) == 10
    assert percentile([1, 2, 3], 99) == 3
    assert percentile([7], 1) == 7
    assert math.isnan(percentile([], 50))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.integers(1, 100))
def test_definition(values: list[float], share: int) -> None:
    """At least `share` percent are not above the percentile, and the next smaller value does not reach that."""
    found = percentile(values, share)
    assert found in values
    assert 100 * sum(value <= found for value in values) >= share * len(values)
    assert 100 * sum(value < found for value in values) < share * len(values)


@pytest.mark.parametrize("share", [0, -1, 100.1, math.nan])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    """There is no 0th percentile by nearest rank, and none above 100."""
    with pytest.raises(ValueError, match=r"share must be within \(0, 100\]"):
        percentile([1.0], share)
