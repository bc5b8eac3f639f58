"""Switches of gRPC's core: they are there when it is imported, and what a user sets himself stays."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from server import grpc_core

from ..test_packages import ROOT

LOOK = "import os, sys; sys.argv[1:] = ['--help']; import {package}.__main__; assert 'grpc' not in sys.modules; "
LOOK += "print(os.environ['GRPC_EXPERIMENTS'])"


@pytest.mark.parametrize(("package", "switch"), [("server", grpc_core.SERVER), ("bench", grpc_core.CLIENT)])
def test_commands_set_them_before_grpc_reads_them(package: str, switch: str):
    environment = {name: value for name, value in os.environ.items() if name != grpc_core.VARIABLE}
    command = [sys.executable, "-c", LOOK.format(package=package)]
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == switch


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "-a,b"),
        ("", "-a,b"),
        ("c", "c,-a,b"),
        ("a", "a,b"),
        ("-b, a", "-b, a"),
    ],
)
def test_what_the_environment_names_stays(monkeypatch: pytest.MonkeyPatch, before: str | None, after: str):
    monkeypatch.setattr(os, "environ", {} if before is None else {grpc_core.VARIABLE: before})
    grpc_core.switch("-a", "b")
    assert os.environ == {grpc_core.VARIABLE: after}


def test_this_grpc_knows_them():
    """Of one that it does not know it says so in its log."""
    start = "import grpc; grpc.insecure_channel('localhost:1').close()"
    environment = os.environ | {grpc_core.VARIABLE: f"{grpc_core.SERVER},{grpc_core.CLIENT}"}
    shown = subprocess.run([sys.executable, "-c", start], env=environment, capture_output=True, text=True, check=True)
    assert "Unknown experiment" not in shown.stderr
