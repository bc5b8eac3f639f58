"""`python -m bench profile` from the outside: a real server with probes, and the floors beside it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.cli import main
from bench.profile import flame
from bench.profile.stages import STAGES


def test_a_profile_of_a_real_server(repository: Path, tmp_path: Path):
    """Every stage of a request is found, they add up, and the pictures and tables are there."""
    output = tmp_path / "profile"
    options = ["--repository", str(repository), "--requests", "20", "--steps", "2", "--flame", "0"]
    assert main(["profile", *options, "--output", str(output)]) == 0
    profile = json.loads((output / "profile.json").read_text())
    stages = {stage["name"]: stage for stage in profile["stages"]}
    assert list(stages) == [stage.name for stage in STAGES]
    assert all(stage["p50"] > 0 for stage in stages.values())
    assert sum(stage["share"] for stage in stages.values()) == pytest.approx(1.0)
    served, echo = profile["served"], profile["echo"]
    assert served["total"]["p50"] > served["engine"]["p50"] > 0
    assert echo["engine"]["p50"] == 0.0
    assert profile["floor"]["engine"]["p50"] > 0
    report = (output / "profile.md").read_text()
    assert "ddim, 2 steps" in report
    assert "The ratio to that floor" in report
    assert (output / "stages.png").read_bytes().startswith(b"\x89PNG")
    assert not (output / "marks.json").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--model", "no-such-model", "no-such-model"),
        ("--requests", "3", "--requests"),
        ("--pause", "-1", "--pause"),
        ("--sampler", "no-such-sampler", "no-such-sampler"),
        ("--steps", "0", "steps"),
    ],
)
def test_wrong_options_are_named(repository: Path, tmp_path: Path, capsys, option: str, value: str, message: str):
    """A profile that cannot be made ends with code 2 and a line that names the option, before anything is started."""
    arguments = ["profile", "--repository", str(repository), "--output", str(tmp_path), option, value]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_missing_py_spy_is_no_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The flame picture needs a program that the rest does not: what is missing is said."""
    monkeypatch.setattr(flame, "py_spy", lambda: None)
    with pytest.raises(flame.FlameError, match="not installed"):
        flame.record(1, tmp_path / "flame.svg", 1.0, lambda: None)


@pytest.mark.skipif(flame.py_spy() is None, reason="py-spy is not installed")
def test_a_flame_picture_says_nothing_of_the_machine(tmp_path: Path):
    """The picture of a process is drawn where it may be looked into, and names no path of this machine."""
    path = tmp_path / "flame.svg"
    with subprocess.Popen([sys.executable, "-c", "while True: sum(range(1000))"]) as process:
        try:
            flame.record(process.pid, path, 1.0, lambda: time.sleep(0.05))
        except flame.FlameError as error:
            pytest.skip(f"processes may not be looked into here: {error}")
        finally:
            process.kill()
    text = path.read_text()
    assert flame.TITLE in text
    assert str(tmp_path) not in text
