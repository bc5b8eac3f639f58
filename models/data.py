"""The data set that ships with the project: scikit-learn's handwritten digits, split once and for all.

1797 real 8x8 grey images (UCI "Optical Recognition of Handwritten Digits", test part).
Training sees `train` only, calibration of energies uses `calibration`, every published number uses `test`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

CLASSES = 10
NULL_LABEL = 10
"""Label index that stands for "no label"; a network conditioned on labels has `CLASSES + 1` embeddings."""

KNOWN_DIGITS = range(5)
"""What the near set of SPEC 8 trains on: "digits 0-4 against 5-9"."""

T = TypeVar("T", bound=np.generic)

SPLIT_SEED = 20240229
SPLIT_SIZES = (1000, 400, 397)


@dataclass(frozen=True)
class LabelledImages:
    """Images with their labels, both read-only.

    images: (n, 1, 8, 8) float32 in [-1, 1].
    labels: (n,) int64 in 0..9.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, digits: Collection[int]) -> LabelledImages:
        """The images whose label is among `digits`, in their order."""
        chosen = np.isin(self.labels, list(digits))
        return LabelledImages(_read_only(self.images[chosen]), _read_only(self.labels[chosen]))


@dataclass(frozen=True)
class DigitsSplit:
    """Disjoint parts of the digits: 1000 to train on, 400 to calibrate energies with, 397 to test on."""

    train: LabelledImages
    calibration: LabelledImages
    test: LabelledImages

    def select(self, digits: Collection[int]) -> DigitsSplit:
        """The same split without the other digits."""
        return DigitsSplit(self.train.select(digits), self.calibration.select(digits), self.test.select(digits))


def load_digits_split() -> DigitsSplit:
    """Load the digits in their fixed split.

    Pixels 0..16 are mapped to [-1, 1] as x/8 - 1.
    The split is a seeded permutation, the same on every machine (NumPy's PCG64 stream is stable), not stratified.
    """
    pixels, targets = load_digits(return_X_y=True)
    images = (pixels.reshape(-1, 1, 8, 8) / 8.0 - 1.0).astype(np.float32)
    labels = targets.astype(np.int64)
    order = np.random.Generator(np.random.PCG64(SPLIT_SEED)).permutation(len(labels))
    parts = []
    start = 0
    for size in SPLIT_SIZES:
        chosen = order[start : start + size]
        parts.append(LabelledImages(_read_only(images[chosen]), _read_only(labels[chosen])))
        start += size
    return DigitsSplit(*parts)


def _read_only(array: NDArray[T]) -> NDArray[T]:
    array.setflags(write=False)
    return array
