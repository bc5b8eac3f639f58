"""Numbers carry their surroundings."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from bench import environment
from bench.environment import describe_environment, stolen_seconds
from models.machine import ROOT


def test_surroundings_are_those_of_this_machine() -> None:
    """Cores, memory, versions and the commit are what the machine itself says."""
    found = describe_environment()
    assert found.cores == os.cpu_count()
    assert 0 < found.usable_cores <= found.cores
    assert found.memory_bytes > 2**28
    assert found.python == platform.python_version()
    assert found.packages["numpy"][0].isdigit()
    assert datetime.fromisoformat(found.time).tzinfo is not None
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert found.commit.removesuffix("-dirty") == (head.stdout.strip() or "unknown")
    assert found.cpu in found.line()
    assert platform.node() not in found.line()


def test_stolen_seconds_are_the_eighth_number_of_all_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As /proc/stat has them, in ticks; a machine that does not tell has none."""
    stat = tmp_path / "stat"
    monkeypatch.setattr(environment, "Path", lambda name: stat if name == "/proc/stat" else Path(name))
    assert stolen_seconds() == 0.0
    stat.write_text("cpu  1 2 3 4 5 6 7 800 9 10\ncpu0 1 2 3 4 5 6 7 8 9 10\n")
    assert stolen_seconds() == 800 / os.sysconf("SC_CLK_TCK")
    stat.write_text("cpu  1 2 3\n")
    assert stolen_seconds() == 0.0


def test_a_machine_that_says_nothing_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without git, nvidia-smi or a package, the rest is still told."""
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(environment, "PACKAGES", ("numpy", "no-such-package"))
    found = describe_environment()
    assert found.commit == "unknown"
    assert found.gpus == ()
    assert found.packages["no-such-package"] == "not installed"
