"""The kernels as compiled for sm_80 and sm_90, on any machine: nothing spills, and memory is read in vectors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def compiled():
    """What `compile_ahead` tells of each kernel; Triton keeps its work in `out/`."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(ROOT / "out" / "triton"),
    }
    command = [sys.executable, "tests/kernels/compile_ahead.py", "--shapes", "3x32x32", "4x64x64", "3x256x256"]
    command += ["--types", "float32", "bfloat16"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def the(compiled, **wanted):
    """The kernels with these properties, one for each architecture."""
    found = [each for each in compiled if wanted.items() <= each.items()]
    assert sorted(each["architecture"] for each in found) == [80, 90], wanted
    return found


def test_nothing_spills(compiled):
    """No kernel keeps anything on its stack, or needs so many registers that few of its warps fit."""
    names = ("ensemble", "gather", "langevin", "norm", "normal", "propose", "root", "sums")
    assert {each["kernel"] for each in compiled} == {f"_{name}_kernel" for name in names}
    for each in compiled:
        assert each["stack"] == each["local"] == 0, each
        assert each["registers"] <= 128, each


@pytest.mark.parametrize(
    ("variant", "dtype", "loads", "stores"),
    [
        # 8 elements a thread: two vectors of 16 bytes for each tensor in float32, one in bfloat16.
        ("ensemble", "float32", 6, 2),  # state, output, anchor; state
        ("ensemble", "bfloat16", 5, 2),
        ("gather", "float32", 2, 6),  # state; state, anchor, network's input
        ("gather", "bfloat16", 2, 5),
        ("normal", "float32", 0, 2),
        ("normal", "bfloat16", 0, 1),
        ("langevin", "float32", 6, 2),
        ("langevin", "bfloat16", 5, 2),
    ],
)
def test_rows_are_read_and_written_in_vectors(compiled, variant, dtype, loads, stores):
    """16 bytes at a time; what is narrower are keys, coefficients and flags."""
    for each in the(compiled, variant=variant, dtype=dtype, shape="3x32x32", channels_last=False):
        assert (each["LDG"].get("128", 0), each["STG"].get("128", 0)) == (loads, stores), each
        assert "16" not in each["LDG"], each
        assert "16" not in each["STG"], each


@pytest.mark.parametrize(
    ("shape", "dtype", "width", "count"),
    [
        ("4x64x64", "float32", "128", 2),  # the four channels of two positions a thread
        ("4x64x64", "bfloat16", "64", 2),
        ("3x32x32", "float32", "32", 8),  # one by one, but neighbours by neighbouring threads
        ("3x32x32", "bfloat16", "16", 8),
    ],
)
def test_channels_last_leaves_the_pools_in_vectors(compiled, shape, dtype, width, count):
    """Where the network's channels come last, its tensor is read along them, and the pools in vectors as ever."""
    scalars = {"128": 4, "64": 1, "32": 7}
    for each in the(compiled, variant="ensemble", dtype=dtype, shape=shape, channels_last=True):
        assert each["LDG"].get(width, 0) >= scalars.get(width, 0) + count, each
        assert each["LDG"]["128"] >= 4, each
        assert each["STG"]["128"] == 2, each
