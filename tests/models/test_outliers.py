"""Out-of-distribution sets: what each of them is made of (SPEC 8)."""

from __future__ import annotations

import numpy as np
import pytest

from models.metrics import outliers
from models.metrics.outliers import OOD_SETS

BY_NAME = {ood_set.name: ood_set for ood_set in OOD_SETS}


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
    photographs = outliers._photographs()
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
    outside = outliers.unseen_digits(pool)
    sources = split.test.select(range(5)).images[:50]
    first, again, other = (outside.images(sources, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    places = [np.flatnonzero((pool == image).all(axis=(1, 2, 3))) for image in first]
    assert all(len(place) > 0 for place in places)
    assert len({int(place[0]) for place in places}) == len(sources)
