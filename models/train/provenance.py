"""What a checkpoint says about its own making."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import torch

from ..data import SPLIT_SEED, SPLIT_SIZES
from ..machine import commit, cpu_name

PACKAGES = ("torch", "diffusers", "numpy", "scikit-learn")


def provenance() -> dict[str, Any]:
    """Data set, machine, versions and commit, as plain JSON values."""
    return {
        "dataset": "scikit-learn load_digits, train part",
        "split": {"seed": SPLIT_SEED, "train": SPLIT_SIZES[0], "calibration": SPLIT_SIZES[1], "test": SPLIT_SIZES[2]},
        "hardware": {"cpu": cpu_name(), "threads": torch.get_num_threads(), "device": "cpu"},
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "commit": commit(besides=["models/zoo"]),  # where training itself writes
    }
