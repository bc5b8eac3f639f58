"""What a checkpoint says about its own making."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..data import SPLIT_SEED, SPLIT_SIZES

PACKAGES = ("torch", "diffusers", "numpy", "scikit-learn")


def provenance() -> dict[str, Any]:
    """Data set, machine, versions and commit, as plain JSON values."""
    return {
        "dataset": "scikit-learn load_digits, train part",
        "split": {"seed": SPLIT_SEED, "train": SPLIT_SIZES[0], "calibration": SPLIT_SIZES[1], "test": SPLIT_SIZES[2]},
        "hardware": {"cpu": _cpu_name(), "threads": torch.get_num_threads(), "device": "cpu"},
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "commit": _commit(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
