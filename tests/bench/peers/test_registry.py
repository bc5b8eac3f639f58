"""Peers by their names, and with other settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.peers import launch
from bench.peers.registry import PEERS, find_peer


def test_a_peer_is_found_by_its_name():
    assert all(find_peer(name) is peer for name, peer in PEERS.items())


def test_a_delay_makes_it_another_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """It has a name of its own beside the first, and its process is told."""
    found = find_peer("triton@0.5")
    assert (found.name, found.title) == ("triton@0.5", "Triton (pytriton), 0.5 ms")
    monkeypatch.setattr(launch, "python_of", lambda environment: Path("python"))
    process = launch.start(found, tmp_path, tmp_path / "log", ["--threads", "1"], models=())
    command = process._command
    assert command[command.index("--delay") + 1] == "0.0005"
    assert command[-2:] == ["--threads", "1"]
