"""The demo and the server process under it: what goes wrong is said, and nothing is left behind."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import board
from bench.cli import main
from bench.demo.ask import BEST_M, STEPS, methods_for
from bench.demo.command import CHECKPOINTS, MODELS
from bench.demo.errors import DemoError
from bench.demo.exporting import export
from bench.server_process import ServerFailed, ServerProcess
from models.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[2]


def test_methods_follow_from_the_models_that_are_there() -> None:
    """DDIM and iDDIM run at the same numbers of steps, VDRME at those of its model; a missing model is left out."""
    methods = methods_for(["digits-vdrme", "digits-ddpm"], (4, 6, 8))
    assert [(m.name, steps) for m in methods for steps in m.steps] == [
        *(("DDIM", steps) for steps in STEPS),
        *(("iDDIM", steps) for steps in STEPS),
        *(("VDRME", steps) for steps in (4, 6, 8)),
    ]
    assert set(BEST_M) == set(STEPS)
    assert {method.name for method in methods_for(["digits-vdrme"], (4,))} == {"VDRME"}
    hat = [method.options["parameters"]["stage"] for method in methods_for(["digits-hat"], ())]
    assert hat == [0, 1, 2]


def test_the_demo_shows_every_method_of_the_zoo() -> None:
    """Every sampler that a shipped model has by default is a row of the picture, or the checkerboard below the rows."""
    cards = {path.name: load_checkpoint(path) for path in (ROOT / "models" / "zoo").iterdir()}
    sampling = {(card.family, name) for name, card in cards.items() if card.sampling is not None}
    shown = {(cards[name].family, name) for name in MODELS}
    # A prior of six steps for the same generator is no other method than the one of three.
    assert sampling - shown == {("latent", "digits-latent-6")}
    assert {method.model for method in methods_for(MODELS, (4,))} == set(MODELS) - {board.MODEL}
    assert [path.name for path in CHECKPOINTS] == list(MODELS)
    names = {method.name for method in methods_for(MODELS, (4,))}
    assert {"DDIM", "iDDIM", "VDRME", "t-GDIM", "T-GDIM", "Hat, stage 2", "EBM prior"} <= names


def test_a_missing_checkpoint_ends_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message names the checkpoint and how to get it; the exit code is 1."""
    assert main(["demo", "models/zoo/absent", "--output", str(tmp_path)]) == 1
    assert "demo failed: no checkpoint at models/zoo/absent" in capsys.readouterr().err


def test_a_failing_export_ends_the_demo_with_its_words(tmp_path: Path) -> None:
    """What the exporter says is passed on."""
    with pytest.raises(DemoError, match=r"(?s)export ended with code 2.*checkpoint\.json"):
        export([tmp_path], tmp_path / "repository")


def test_an_export_that_takes_too_long_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter is killed together with the processes that it started."""
    child = "import os, time; print(os.getpid(), file=open('pid', 'w'), flush=True); time.sleep(60)"
    script = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    popen = subprocess.Popen
    monkeypatch.setattr(
        "bench.demo.exporting.subprocess.Popen",
        lambda _, **kwargs: popen([sys.executable, "-c", script], **{**kwargs, "cwd": tmp_path}),
    )
    monkeypatch.setattr("bench.demo.exporting.EXPORT_TIMEOUT", 5.0)
    with pytest.raises(DemoError, match=r"did not end within 5 s"):
        export([tmp_path], tmp_path / "repository")
    child_pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline and _runs(child_pid):
        time.sleep(0.05)
    assert not _runs(child_pid)


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_a_server_that_cannot_start_is_reported_with_its_log(tmp_path: Path) -> None:
    """The exit code and the end of the log are in the message, and it does not wait for the timeout."""
    process = ServerProcess(tmp_path / "absent", tmp_path / "server.log")
    with pytest.raises(ServerFailed, match=r"(?s)ended with code \d+ before it was ready; its log .*absent"), process:
        raise AssertionError("started over a repository that is not there")


def stand_in(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Have the next server be a few lines of Python."""
    popen = subprocess.Popen
    monkeypatch.setattr(
        "bench.process.subprocess.Popen", lambda _, **kwargs: popen([sys.executable, "-c", script], **kwargs)
    )


READY = "import signal, time; print('ready grpc=127.0.0.1:5 metrics=127.0.0.1:6', flush=True); "


def test_addresses_are_read_and_a_clean_stop_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ready line gives the addresses; SIGTERM ends the process, and a second stop tells the code again."""
    stand_in(monkeypatch, "import sys; " + READY + "signal.signal(15, lambda *_: sys.exit(0)); time.sleep(30)")
    with ServerProcess(tmp_path, tmp_path / "log") as server:
        assert (server.address, server.metrics_address) == ("127.0.0.1:5", "127.0.0.1:6")
        assert server.stop() == server.stop() == 0


def test_a_bad_stop_is_an_error_unless_there_was_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exit code other than 0 fails a good run, and does not hide why a bad one failed."""
    stand_in(monkeypatch, READY + "time.sleep(30)")  # dies of SIGTERM
    with pytest.raises(ServerFailed, match="ended with code -15"), ServerProcess(tmp_path, tmp_path / "log"):
        pass
    with pytest.raises(KeyError, match="first"), ServerProcess(tmp_path, tmp_path / "log"):
        raise KeyError("first")


def test_a_server_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left running, and the message says that it did not stop."""
    stand_in(monkeypatch, "import signal, time; signal.signal(15, signal.SIG_IGN); " + READY + "time.sleep(30)")
    server = ServerProcess(tmp_path, tmp_path / "log", stop_timeout=0.2)
    with pytest.raises(ServerFailed, match=r"did not stop within 0\.2 s"), server:
        pass
    assert server.stop() == -9


def test_a_server_that_is_never_ready_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting has an end, after which nothing is left running."""
    stand_in(monkeypatch, "import time; time.sleep(30)")
    server = ServerProcess(tmp_path, tmp_path / "log", start_timeout=0.3)
    with pytest.raises(ServerFailed, match=r"not ready within 0\.3 s; its log .* is empty"), server:
        pass
    assert server.stop() == -9
