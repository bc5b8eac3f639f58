"""Environments of the peers: found, told apart from stale ones, and asked for in words where they are missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.peers import environments
from bench.peers.environments import Needs, PeerEnvironmentError, find_python, install, is_installed, python_of
from bench.peers.launch import start
from bench.peers.registry import PEERS

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Environments and requirements of the test's own."""
    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path / "environments")
    monkeypatch.setattr(environments, "REQUIREMENTS", tmp_path)
    return tmp_path


def test_every_peer_has_what_it_needs() -> None:
    """A peer's module and its requirements are there, pinned, and none brings torch along."""
    for peer in PEERS.values():
        if peer.module is not None:
            assert (Path(environments.__file__).parent / f"{peer.module}.py").is_file()
        if peer.environment is not None:
            assert peer.environment in environments.names()
    for name in environments.names():
        lines = (environments.REQUIREMENTS / f"{name}.txt").read_text().splitlines()
        packages = [line.partition("==")[0] for line in lines if not line.startswith("#")]
        assert all("==" in line for line in lines if not line.startswith("#"))
        assert {"onnxruntime", "numpy", "msgspec"} <= set(packages)
        assert "torch" not in packages


def test_an_environment_is_made_once_and_again_when_its_requirements_change(elsewhere: Path) -> None:
    """A second installation does nothing; other requirements make the environment stale."""
    (elsewhere / "empty.txt").write_text("# nothing\n")
    assert install("empty")
    assert python_of("empty").is_file()
    assert not install("empty")
    (elsewhere / "empty.txt").write_text("# something else\n")
    assert not is_installed("empty")
    with pytest.raises(PeerEnvironmentError, match="empty is not installed; run: python -m bench peers install empty"):
        python_of("empty")


def test_an_unknown_environment_is_named(elsewhere: Path) -> None:
    """The message lists what there is."""
    (elsewhere / "known.txt").write_text("")
    with pytest.raises(PeerEnvironmentError, match="no environment 'absent'; there are known"):
        install("absent")


def test_packages_that_cannot_be_installed_leave_nothing_that_looks_complete(elsewhere: Path) -> None:
    """The message ends with what pip said, and the next call tries again."""
    (elsewhere / "broken.txt").write_text("not a requirement at all\n")
    with pytest.raises(PeerEnvironmentError, match=r"(?s)ended with code 1.*[Ii]nvalid requirement"):
        install("broken")
    assert not is_installed("broken")


def test_the_preferred_python_is_taken_and_shims_that_fail_are_passed_over(tmp_path: Path) -> None:
    """A candidate that does not run is no candidate."""
    shim = tmp_path / "python"
    shim.write_text("#!/bin/sh\necho 'version not selected' >&2\nexit 127\n")
    shim.chmod(0o755)
    found = find_python(Needs((HERE,)), "peer", iter([shim, tmp_path / "absent", Path(sys.executable)]))
    assert (found.path, found.version) == (Path(sys.executable), HERE)


def test_a_missing_python_is_named_with_what_there_is() -> None:
    """So that one knows what to install."""
    with pytest.raises(PeerEnvironmentError, match=rf"peer needs Python 3\.99, .*found: {HERE}"):
        find_python(Needs(("3.99",)), "peer", iter([Path(sys.executable)]))


def test_a_peer_without_its_environment_is_not_started(elsewhere: Path) -> None:
    """The error says how to get it, before anything is started."""
    (elsewhere / "triton.txt").write_text("")
    with pytest.raises(PeerEnvironmentError, match="python -m bench peers install triton"):
        start(PEERS["triton"], elsewhere, elsewhere / "log", models=[])
