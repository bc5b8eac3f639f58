"""What several tests of models and metrics look at."""

from __future__ import annotations

import pytest

from models.data import DigitsSplit, load_digits_split
from models.metrics.frechet import FrechetDigits


@pytest.fixture(scope="session")
def split() -> DigitsSplit:
    """The digits, as the zoo was trained on them."""
    return load_digits_split()


@pytest.fixture(scope="session")
def digits() -> FrechetDigits:
    """The frozen classifier with the training digits' moments."""
    return FrechetDigits.load()
