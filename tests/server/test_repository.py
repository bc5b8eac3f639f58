"""What a caller is told of a bundle that is not on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.bundle import MANIFEST
from server.config import Config
from server.errors import NotFound
from server.repository import Repository

NOBODY: Any = None  # engines: nothing gets as far as them


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    for place in ("toy/2", "toy/10", "other/1"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / MANIFEST).touch()
    return Repository(Config(tmp_path), [], NOBODY)


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [
        ("", 0, "model: must name a bundle on disk, got an empty name; there are: other, toy"),
        ("", 3, "model: must name a bundle on disk, got an empty name; there are: other, toy"),
        ("nope", 0, "model: no bundle of 'nope' on disk; there are: other, toy"),
        ("toy", 3, "version: no bundle of toy version 3 on disk; there are: 2, 10"),
    ],
)
def test_a_bundle_that_is_not_there_is_said_with_what_is(repository: Repository, name: str, version: int, said: str):
    """The field at fault comes first: the model, a missing one too, or its version."""
    with pytest.raises(NotFound) as caught:
        repository.load(name, version)
    assert str(caught.value) == said
