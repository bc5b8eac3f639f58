"""Requests that have the server to themselves, run by the event loop: the same answers, errors and counts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from protos import fewstep_pb2 as pb
from server.backend import HostBackend
from server.loop.company import LOOK_EVERY, MEMORY
from server.loop.runner import ModelRunner

from ..running import RunningServer, running_server
from .test_oracle import REQUESTS, images, send

SHORT = pb.SampleRequest(model="digits-ddpm", sampler="ddim", steps=1, seed=5)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that ran the steps."""
    found: list[str] = []
    enqueue = ModelRunner.enqueue

    def noted(runner, batch):
        found.append(threading.current_thread().name)
        return enqueue(runner, batch)

    monkeypatch.setattr(ModelRunner, "enqueue", noted)
    return found


@pytest.fixture
def lone(repository: Path, threads: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningServer]:
    """A server whose requests have been alone for long, and which takes none to be too long to be run at once."""
    monkeypatch.setattr(HostBackend, "at_once_seconds", 60.0)
    with running_server(repository) as server:
        for _ in range(3 * MEMORY):
            server.sample(SHORT)
        yield server


def at_once(threads: list[str]) -> int:
    return sum(not name.startswith("engine") for name in threads)


def test_every_kind_of_request_comes_out_the_same(server: RunningServer, lone: RunningServer, threads: list[str]):
    for name in REQUESTS:
        send(lone, name, seed=100)  # after which it is known what it takes
        threads.clear()
        got = [images(send(lone, name, seed=100)).tobytes() for _ in range(2)]
        assert at_once(threads), name
        assert got == [images(send(server, name, seed=100)).tobytes()] * 2, name


def test_it_is_counted_and_answered_like_any_other(lone: RunningServer, threads: list[str]):
    threads.clear()
    before = lone.engine.batcher.counters.jobs
    answers = [lone.sample(SHORT) for _ in range(10 * LOOK_EVERY)]
    assert at_once(threads) == 10 * (LOOK_EVERY - 1)
    assert lone.engine.batcher.counters.jobs == before + len(answers)
    assert lone.engine.batcher.rows_in_flight == 0
    assert {answer.timing.steps for answer in answers} == {1}
    assert all(0 < answer.timing.network_seconds <= answer.timing.compute_seconds for answer in answers)


def test_its_failure_is_its_own(lone: RunningServer, monkeypatch: pytest.MonkeyPatch):
    def broken(runner, batch):
        raise ValueError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(ModelRunner, "enqueue", broken)
        for _ in range(LOOK_EVERY):
            with pytest.raises(grpc.RpcError) as raised:
                lone.sample(SHORT)
            assert raised.value.code() == grpc.StatusCode.INTERNAL
            assert "a bug" in raised.value.details()
    assert len(lone.sample(SHORT).images.raw) == 256


def test_clients_that_meet_share_batches_soon(lone: RunningServer, threads: list[str]):
    """However long the server has served one alone."""
    together, each = 16, 40
    with ThreadPoolExecutor(together) as pool:
        list(pool.map(lambda _: [lone.sample(SHORT) for _ in range(each)], range(together)))
        threads.clear()
        before = lone.engine.batcher.counters.batches
        list(pool.map(lambda _: [lone.sample(SHORT) for _ in range(each)], range(together)))
    assert lone.engine.batcher.counters.batches - before < together * each / 2
    assert at_once(threads) < 0.1 * together * each
