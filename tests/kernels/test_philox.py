"""Counter-based noise: published vectors, distribution, independence, and indifference to the batch."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.philox import normal, philox4x32

# Known-answer vectors of Random123 (kat_vectors, philox4x32 with 10 rounds).
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_philox_matches_the_published_vectors(counter, key, expected):
    """Philox 4x32-10 reproduces the known answers bit for bit."""
    words = philox4x32(np.array(counter, dtype=np.uint64), np.array(key, dtype=np.uint64))
    assert tuple(map(int, words)) == expected


def test_noise_is_standard_normal():
    """Moments and tail frequencies of 10^6 values fit N(0, 1) within five standard errors."""
    values = normal([2024] * 250, range(250), [0] * 250, 4000).astype(np.float64).ravel()
    n = values.size
    assert abs(values.mean()) < 5 / np.sqrt(n)
    assert abs(values.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs((values**3).mean()) < 5 * np.sqrt(15 / n)
    assert abs((values**4).mean() - 3) < 5 * np.sqrt(96 / n)
    for limit, probability in ((1.0, 0.317310508), (2.0, 0.0455002639), (3.0, 0.0026997961)):
        assert abs((np.abs(values) > limit).mean() - probability) < 5 * np.sqrt(probability / n)


@pytest.mark.parametrize("which", ["seed", "sample", "draw", "high seed bits"])
def test_streams_are_independent(which):
    """Streams that differ in the seed, the sample or the draw alone are uncorrelated, neighbours included."""
    rows, elements = 64, 4096
    seeds, samples, draws = [7] * rows, [3] * rows, [5] * rows
    if which == "seed":
        seeds = list(range(rows))
    elif which == "high seed bits":
        seeds = [7 + (row << 32) for row in range(rows)]
    elif which == "sample":
        samples = list(range(rows))
    else:
        draws = list(range(rows))
    correlation = np.corrcoef(normal(seeds, samples, draws, elements).astype(np.float64))
    off_diagonal = correlation[~np.eye(rows, dtype=bool)]
    assert np.abs(off_diagonal).max() < 5.5 / np.sqrt(elements)


def test_elements_are_independent():
    """Neighbouring elements of one stream, Box-Muller partners included, are uncorrelated."""
    values = normal(range(100), [0] * 100, [0] * 100, 4096).astype(np.float64)
    for lag in (1, 2, 3, 4, 5):
        product = values[:, lag:] * values[:, :-lag]
        assert abs(product.mean()) < 5 / np.sqrt(product.size)


@pytest.mark.parametrize("elements", [1, 3, 4, 63, 64, 65, 3072])
def test_a_row_is_the_same_alone_and_in_company(elements):
    """A row's noise is bitwise the same in any batch and at any place."""
    seeds, samples, draws = [2**64 - 1, 0, 7, 7, 7], [0, 1, 2**32 - 1, 3, 3], [4, 4, 0, 1, 2]
    together = normal(seeds, samples, draws, elements)
    for row in range(5):
        alone = normal(seeds[row : row + 1], samples[row : row + 1], draws[row : row + 1], elements)
        assert np.array_equal(together[row], alone[0])


def test_longer_draws_begin_with_shorter_ones():
    """The value of an element does not depend on how many are drawn."""
    assert np.array_equal(normal([1], [2], [3], 100)[0, :37], normal([1], [2], [3], 37)[0])
