"""Files that others must not read or change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.access.secret_files import MAX_BYTES, Reloaded, read_file
from server.config import ConfigError

from .calling import Clock


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o602, 0o777])
def test_a_secret_that_others_can_read_or_change_is_refused(tmp_path: Path, mode: int):
    """Every user may not read it, and nobody but its owner may write it."""
    path = tmp_path / "secret"
    path.write_text("x")
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"tokens: .*secret is open to other users .mode {mode:04o}"):
        read_file("tokens", path, private=True)
    path.chmod(0o640)
    assert read_file("tokens", path, private=True) == b"x"


def test_pipes_and_huge_files_are_not_read(tmp_path: Path):
    """A file that would block, or fill the memory, is refused."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="not a regular file"):
        read_file("tokens", tmp_path / "pipe", private=False)
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", MAX_BYTES + 1)
    with pytest.raises(ConfigError, match="at most"):
        read_file("tokens", tmp_path / "huge", private=False)


def test_a_file_is_looked_at_once_a_second_at_most(tmp_path: Path, clock: Clock):
    """Between two looks the clock alone is asked; a change of permissions counts as one."""
    path = tmp_path / "file"
    path.touch(mode=0o600)
    made: list[int] = []
    reloaded = Reloaded([path], lambda: made.append(1), clock=clock)
    path.write_text("changed")
    assert not reloaded.refresh()
    clock.now += 0.99
    assert not reloaded.refresh()
    clock.now += 0.02
    assert reloaded.refresh()
    path.chmod(0o640)
    clock.now += 1.5
    assert reloaded.refresh()
    assert len(made) == 3
