"""What checkpoints and measurements say of the code that they come from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from models.machine import ROOT, commit
from models.train import provenance


def git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with a file of code and a checkpoint."""
    (tmp_path / "zoo").mkdir()
    for name in ("code.py", "zoo/weights"):
        (tmp_path / name).write_text("1")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_changed_code_marks_the_commit(tree: Path):
    """The commit stands alone while tracked files are its own, and gets `-dirty` when one of them differs."""
    head = git(tree, "rev-parse", "HEAD")
    (tree / "untracked").write_text("1")
    assert commit(tree) == head
    (tree / "code.py").write_text("2")
    assert commit(tree) == f"{head}-dirty"


def test_what_training_writes_does_not_mark_it(tree: Path):
    """Paths left out may change: the second checkpoint of a run is not dirty because the first has been written."""
    (tree / "zoo" / "weights").write_text("2")
    assert commit(tree, besides=["zoo"]) == git(tree, "rev-parse", "HEAD")
    assert commit(tree).endswith("-dirty")
    (tree / "code.py").write_text("2")
    assert commit(tree, besides=["zoo"]).endswith("-dirty")


def test_outside_git_the_commit_is_unknown(tmp_path: Path):
    """A tree that came as an archive has no commit."""
    assert commit(tmp_path) == "unknown"


def test_a_checkpoint_carries_the_mark():
    """Training records the commit as measurements do, but for the checkpoints that it writes itself."""
    assert provenance.provenance()["commit"] == commit(ROOT, besides=["models/zoo"])
