"""The plain grpcio peer, started as the comparison starts it, and the HTTP contract's reading and writing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bench.compare.caller import CallerError, Draw, OipCaller
from bench.peers.engine import RequestError, load_engines
from bench.peers.launch import PeerProcess, hold, release, start
from bench.peers.registry import PEERS
from bench.peers.serving import read_sample, read_score, run_jobs
from bench.process import ServerFailed

from ...running import wait_until

IMAGES = np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 1, 8, 8)


@pytest.fixture(scope="module")
def plain(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PeerProcess]:
    log = tmp_path_factory.mktemp("plain") / "log"
    process = start(PEERS["grpc"], repository, log, models=["digits-ddpm", "digits-vdrme.score"])
    assert isinstance(process, PeerProcess)
    with process:
        yield process


def test_it_answers_with_what_the_engine_gives(plain: PeerProcess, repository: Path) -> None:
    """Samples of each seed, and scores, over the Open Inference Protocol."""
    engines = load_engines(repository, 1)
    with OipCaller(plain.address) as caller:
        got = np.frombuffer(caller.sampling(Draw("digits-ddpm", "ddim", 3, (5, 6)))(), "<f4")
        energies = caller.score("digits-vdrme", IMAGES)
    (wanted,) = engines["digits-ddpm"].run([engines["digits-ddpm"].sample_request("ddim", 3, [5, 6])])
    (scores,) = engines["digits-vdrme"].run([engines["digits-vdrme"].score_request(IMAGES)])
    np.testing.assert_allclose(got, wanted.ravel(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(energies, scores, rtol=1e-5)


def test_it_names_what_is_wrong(plain: PeerProcess) -> None:
    """An unknown model and an impossible option come back as errors."""
    with OipCaller(plain.address) as caller:
        with pytest.raises(CallerError, match="NOT_FOUND: no model 'absent'"):
            caller.sampling(Draw("absent", "ddim", 1, (1,)))()
        with pytest.raises(CallerError, match="INVALID_ARGUMENT: sampler"):
            caller.sampling(Draw("digits-ddpm", "absent", 1, (1,)))()


def test_a_held_server_takes_no_time_and_goes_on(plain: PeerProcess) -> None:
    """Held it does not answer; released it answers what was asked meanwhile."""
    with OipCaller(plain.address) as caller:
        ask = caller.sampling(Draw("digits-ddpm", "ddim", 1, (1,)))
        wanted = ask()
        hold(plain)
        try:
            wait_until(lambda: _state(plain.pid) == "T")  # a thread that runs stops at its next turn
        finally:
            release(plain)
        assert ask() == wanted


def test_a_peer_that_cannot_start_is_reported_with_its_log(tmp_path: Path) -> None:
    """The peer's name and the end of its log are in the message, and nothing is left running."""
    process = start(PEERS["grpc"], tmp_path / "absent", tmp_path / "log", models=[])
    with pytest.raises(ServerFailed, match=r"(?s)grpcio, no batching ended with code 1 before.*FileNotFound"), process:
        raise AssertionError("started over a repository that is not there")
    assert process.family() == [process.pid]


def test_whatever_a_server_started_goes_with_it(plain: PeerProcess, tmp_path: Path) -> None:
    """A process that moved out of its parent's reach is found by its environment."""

    class Straying(PeerProcess):
        def _look_ready(self) -> bool:
            return len(self.family()) > 1

    script = "import subprocess, sys, time; subprocess.Popen(['sleep', '60'], start_new_session=True); time.sleep(60)"
    process = Straying(PEERS["grpc"], tmp_path, tmp_path / "log", models=[])
    process._command = [*process._command[:1], "-c", script]
    with process:
        strays = [pid for pid in process.family() if pid != process.pid]
    deadline = time.monotonic() + 10
    while any(_state(pid) not in "ZX" for pid in strays) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert strays
    assert all(_state(pid) in "ZX" for pid in strays)


def _state(pid: int) -> str:
    """The letter that the system gives to what a process does; X for one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def test_the_http_contract_runs_batches_of_several_models(repository: Path) -> None:
    """Jobs of two models and two kinds in one batch get the bytes that each would get alone."""
    engines = load_engines(repository, 1)
    body = {"model": "digits-ddpm", "sampler": "ddim", "steps": 2, "seeds": [3, 4], "labels": [1, 2]}
    jobs = [
        read_sample(engines, msgspec.json.encode(body)),
        read_score(engines, "digits-vdrme", 2, IMAGES.astype("<f4").tobytes()),
        read_sample(engines, b'{"model": "digits-vdrme", "seeds": [9]}'),
    ]
    together = run_jobs(engines, jobs)
    for job, answer in zip(jobs, together, strict=True):
        (alone,) = run_jobs(engines, [job])
        kind = "<f8" if job.request.images is not None else "<f4"
        np.testing.assert_allclose(np.frombuffer(answer, kind), np.frombuffer(alone, kind), rtol=1e-5, atol=1e-5)
    assert [len(answer) for answer in together] == [2 * 64 * 4, 2 * 8, 64 * 4]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "truncated"),
        (b'{"model": "absent", "seeds": [1]}', "model: must be one of"),
        (b'{"model": "digits-ddpm", "seeds": [1], "stps": 3}', "stps"),
        (b'{"model": "digits-ddpm", "seeds": [1], "steps": 0}', "steps"),
    ],
)
def test_a_malformed_call_is_named(repository: Path, body: bytes, message: str) -> None:
    """A field that is wrong is in the message."""
    with pytest.raises(ValueError, match=message):
        read_sample(load_engines(repository, 1), body)


def test_images_of_another_shape_are_refused(repository: Path) -> None:
    """By their number of bytes."""
    with pytest.raises(ValueError, match="reshape"):
        read_score(load_engines(repository, 1), "digits-vdrme", 2, b"\0" * 12)
    with pytest.raises(RequestError, match="model"):
        read_score(load_engines(repository, 1), "absent", 1, b"")
