"""Fixtures of the tests of who may call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ...certificates import Authority
from .calling import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Writes the tokens file, open to its owner only."""
    path = tmp_path / "tokens.toml"

    def write(text: str) -> Path:
        path.touch(mode=0o600)
        path.write_text(text)
        return path

    return write


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))
