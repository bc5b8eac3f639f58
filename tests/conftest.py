"""Fixtures shared by all tests: the exported zoo and a server on it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .running import RunningServer, running_server

ROOT = Path(__file__).parent.parent
ZOO = ROOT / "models" / "zoo"
SERVED = ("digits-ddpm", "digits-vdrme", "digits-gdim", "digits-hat", "digits-latent", "checkerboard-vdrme")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that are marked `gpu` are skipped where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch  # here, as most runs of a few tests need none

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The shipped checkpoints as bundles; kept in `out/`, where an unchanged one is not exported again."""
    target = ROOT / "out" / "test-repository"
    # Tests name version 1: what an older checkpoint left there goes.
    if any(directory.name != "1" for directory in target.glob("*-*/*")):
        shutil.rmtree(target)
    checkpoints = [str(ZOO / name) for name in SERVED]
    command = [sys.executable, "-m", "export", *checkpoints, "--repository", str(target), "--jobs", "2"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=900, capture_output=True)
    if any(directory.name != "1" for directory in target.glob("*-*/*")):
        shutil.rmtree(target)
        subprocess.run(command, cwd=ROOT, check=True, timeout=900, capture_output=True)
    return target


@pytest.fixture
def own_repository(repository: Path, tmp_path: Path) -> Path:
    """A repository of the test's own, with the newest digits-ddpm in it."""
    newest = max((repository / "digits-ddpm").iterdir(), key=lambda directory: int(directory.name))
    shutil.copytree(newest, tmp_path / "digits-ddpm" / newest.name)
    return tmp_path


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[RunningServer]:
    """One server with the default engine for all tests that leave no trace in it."""
    with running_server(repository) as running:
        yield running
