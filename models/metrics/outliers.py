"""Out-of-distribution sets for 8x8 digits (SPEC 8), each a pure function of in-distribution images and a seed.

Nothing may be tuned on them. *Near* also knows "digits 0-4 against 5-9", which is no transformation of images:
`unseen_digits` draws from images of digits that a detector's training left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_images

Array = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]
Category = Literal["near", "shifted", "far", "trap"]

LOW, HIGH = -1.0, 1.0


@dataclass(frozen=True)
class OodSet:
    """A named way to make out-of-distribution images.

    `make(images, rng)` takes images (n, channels, size, size) in [-1, 1] and returns as many, float32 in [-1, 1].
    `seeded` is false where the set is the same for every seed.
    """

    name: str
    category: Category
    description: str
    seeded: bool
    make: Callable[[Images, np.random.Generator], npt.NDArray[np.floating]]

    def images(self, sources: Images, seed: int) -> Images:
        """The set made from `sources` (n, channels, size, size) float32 in [-1, 1]; same shape and range.

        Raises:
            ValueError: `sources` is not a batch of square images, or leaves [-1, 1].
        """
        if sources.ndim != 4 or len(sources) == 0 or sources.shape[2] != sources.shape[3]:
            raise ValueError(f"images must be (n, channels, size, size) with n >= 1, got shape {sources.shape}")
        if not (np.abs(sources) <= 1.0).all():
            raise ValueError("images must be within [-1, 1]")
        made = self.make(sources, np.random.Generator(np.random.PCG64(seed)))
        return np.ascontiguousarray(np.clip(made, LOW, HIGH), dtype=np.float32)


def averages(images: Images, rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """Mean of each image and another one: half of either digit, the hardest of the sets.

    Raises:
        ValueError: fewer than two images.
    """
    if len(images) < 2:
        raise ValueError("averages need at least 2 images")
    partner = (np.arange(len(images)) + rng.integers(1, len(images), size=len(images))) % len(images)
    return (images + images[partner]) / 2.0


def rotation(images: Images, rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """A quarter turn, anticlockwise; a rotated 0 or 8 is nearly a digit again."""
    return np.rot90(images, axes=(2, 3))


def inversion(images: Images, rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """Dark and light exchanged."""
    return -images


def blur(images: Images, rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """Gaussian blur of standard deviation 1 pixel, background outside."""
    return gaussian_filter(images.astype(np.float64), sigma=(0.0, 0.0, 1.0, 1.0), mode="constant", cval=LOW)


def permuted_pixels(images: Images, rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """Pixels of each image in an order of its own: every grey value stays, every shape goes."""
    return rng.permuted(images.reshape(len(images), -1), axis=1).reshape(images.shape)


def pixel_gaussian(images: Images, rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """Independent Gaussian pixels with the mean and standard deviation that each pixel has in `images`, clipped."""
    mean, deviation = images.mean(axis=0, dtype=np.float64), images.std(axis=0, dtype=np.float64)
    return mean + deviation * rng.standard_normal(images.shape)


def uniform_noise(images: Images, rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """Independent uniform pixels."""
    return rng.uniform(LOW, HIGH, images.shape)


def stripes(images: Images, rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """Black and white stripes, 1 to 3 pixels wide, of random direction and phase."""
    rows = len(images)
    angle, half_period, phase = (
        rng.uniform(low, high, (rows, 1, 1, 1)) for low, high in ((0.0, np.pi), (1.0, 3.0), (0.0, 2.0 * np.pi))
    )
    size = images.shape[-1]
    across = np.arange(size) * np.cos(angle) + np.arange(size)[:, None] * np.sin(angle)
    return np.broadcast_to(np.where(np.sin(np.pi * across / half_period + phase) >= 0.0, HIGH, LOW), images.shape)


def photograph_crops(images: Images, rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """Grey crops, in full resolution, of the two photographs that come with scikit-learn.

    Many crops are sky or wall and nearly constant: in part the trap of `constant`.
    """
    photographs = _photographs()
    size = images.shape[-1]
    crops = np.empty(images.shape)
    for crop, which in zip(crops, rng.integers(len(photographs), size=len(images)), strict=True):
        photograph = photographs[which]
        top, left = rng.integers(np.array(photograph.shape) - size + 1)
        crop[:] = photograph[top : top + size, left : left + size]
    return crops


def constant(images: Images, rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """Images of one grey value, evenly from -1 to 1: simple images that many likelihoods prefer to real data."""
    levels = np.linspace(LOW, HIGH, len(images))
    return np.broadcast_to(levels[:, None, None, None], images.shape)


def blank(images: Images, rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """The empty background, -1 throughout: the constant that is nearest to a digit."""
    return np.full(images.shape, LOW)


def unseen_digits(pool: Images) -> OodSet:
    """Real digits of kinds that a detector's training left out: each seed draws as many as there are images.

    pool: images (m, channels, size, size) of those digits, at least as many as a detector is asked about.
    """

    def draw(images: Images, rng: np.random.Generator) -> npt.NDArray[np.floating]:
        return pool[rng.choice(len(pool), len(images), replace=False)]

    return OodSet("unseen", "near", "digits that training left out", True, draw)


@lru_cache(maxsize=1)
def _photographs() -> tuple[Array, ...]:
    """china.jpg and flower.jpg as (height, width) luminance in [-1, 1] (Rec. 601 weights)."""
    weights = np.array([0.299, 0.587, 0.114])
    return tuple((image @ weights) / 127.5 - 1.0 for image in load_sample_images().images)


OOD_SETS: tuple[OodSet, ...] = (
    OodSet("averages", "near", "averages of two images", True, averages),
    OodSet("rotation", "shifted", "rotated by 90 degrees", False, rotation),
    OodSet("inversion", "shifted", "inverted", False, inversion),
    OodSet("blur", "shifted", "Gaussian blur of 1 pixel", False, blur),
    OodSet("permuted", "far", "permuted pixels", True, permuted_pixels),
    OodSet("gaussian", "far", "Gaussian matched per pixel", True, pixel_gaussian),
    OodSet("uniform", "far", "uniform noise", True, uniform_noise),
    OodSet("stripes", "far", "stripes", True, stripes),
    OodSet("photographs", "far", "crops of photographs", True, photograph_crops),
    OodSet("constant", "trap", "constant images, all grey values", False, constant),
    OodSet("blank", "trap", "empty background", False, blank),
)
"""Every set, from the hardest category to the traps."""
