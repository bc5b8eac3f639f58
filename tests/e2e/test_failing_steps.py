"""Steps that hang or fail, and rows that break them: who is told what, and who does not notice."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos import fewstep_pb2 as pb
from server.config import Limits

from ..running import UNCUT, running_server


def test_a_stuck_step_turns_health_and_a_recovered_one_turns_it_back(own_repository: Path):
    """While a network hangs health says NOT_SERVING; when it returns, SERVING, and the request is answered."""
    with running_server(own_repository, stall_seconds=0.2) as server:
        health = health_pb2_grpc.HealthStub(server.channel)

        def wait_for(status: int) -> None:
            deadline = time.monotonic() + 10
            while health.Check(health_pb2.HealthCheckRequest()).status != status:
                assert time.monotonic() < deadline
                threading.Event().wait(0.05)

        (runner,) = server.engine._runners.values()
        session, go_on = runner._sessions["denoiser"], threading.Event()

        class Stuck:
            def run(self, inputs):
                go_on.wait(20)
                return session.run(inputs)

        runner._sessions = {"denoiser": Stuck()}
        waiting = server.later(pb.SampleRequest(model="digits-ddpm", steps=1))
        wait_for(health_pb2.HealthCheckResponse.NOT_SERVING)
        go_on.set()
        wait_for(health_pb2.HealthCheckResponse.SERVING)
        assert len(waiting.result().images.raw) == 256


def test_a_row_that_turns_non_finite_is_named_and_its_neighbours_are_unharmed(own_repository: Path):
    """NaN for one row ends its request INTERNAL with the step; the others are what they are alone."""
    model, sampler = "digits-ddpm", "ddim"
    good = [pb.SampleRequest(model=model, sampler=sampler, steps=8, count=3, labels=[2], seed=i) for i in range(5)]
    with running_server(own_repository) as server:
        alone = [np.frombuffer(server.sample(request).images.raw, "<f4") for request in good]
        (runner,) = server.engine._runners.values()
        session = runner._sessions["denoiser"]

        class Poisoned:
            def run(self, inputs):
                (output,) = session.run(inputs)
                late = (inputs["label"] == 6) & (inputs["time"] < 300)
                return (np.where(late.reshape(-1, 1, 1, 1), np.float32("nan"), output),)

        runner._sessions = {"denoiser": Poisoned()}
        answers = [server.later(request) for request in good]
        bad = server.later(pb.SampleRequest(model="digits-ddpm", sampler="ddim", steps=8, count=2, labels=[6]))
        assert bad.exception().code() == grpc.StatusCode.INTERNAL
        assert "non-finite at step 5 of 8" in bad.exception().details()
        for wanted, answer in zip(alone, answers, strict=True):
            assert np.abs(np.frombuffer(answer.result().images.raw, "<f4") - wanted).max() <= 1e-5


class Flaky:
    """A session that fails on batches above a size, or on rows with a chosen label."""

    def __init__(self, session, *, largest: int = 1000, poison: int = -1) -> None:
        self.session, self.largest, self.poison = session, largest, poison
        self.failures = 0

    def run(self, inputs):
        if len(inputs["sample"]) > self.largest or (inputs["label"] == self.poison).any():
            self.failures += 1
            raise RuntimeError("out of memory")
        return self.session.run(inputs)


def with_flaky_engine(server, **options) -> Flaky:
    (runner,) = server.engine._runners.values()
    flaky = Flaky(runner._sessions["denoiser"], **options)
    runner._sessions = {"denoiser": flaky}
    return flaky


def test_a_batch_that_is_too_large_is_split_and_nothing_is_lost(own_repository: Path):
    """If the engine fails on wide batches, halves are tried: the answer is what it is without the failure."""
    request = pb.SampleRequest(model="digits-ddpm", sampler="ddim", steps=6, count=24, seed=9, eta=0.5)
    with running_server(own_repository, limits=UNCUT) as server:
        wanted = np.frombuffer(server.sample(request).images.raw, "<f4")
        flaky = with_flaky_engine(server, largest=5)
        got = np.frombuffer(server.sample(request).images.raw, "<f4")
        assert flaky.failures >= 6
        assert np.abs(got - wanted).max() <= 1e-5


def test_a_row_that_breaks_the_network_fails_alone(own_repository: Path):
    """A request on which the network raises ends INTERNAL; those that shared its batches are answered."""
    with running_server(own_repository) as server:
        with_flaky_engine(server, poison=6)
        good = [
            server.later(pb.SampleRequest(model="digits-ddpm", steps=8, count=4, labels=[2], seed=i)) for i in range(6)
        ]
        bad = server.later(pb.SampleRequest(model="digits-ddpm", steps=8, labels=[6]))
        assert bad.exception().code() == grpc.StatusCode.INTERNAL
        assert "out of memory" in bad.exception().details()
        assert all(len(future.result().images.raw) == 4 * 256 for future in good)


def test_what_a_row_leaves_in_its_slot_does_not_reach_the_next(own_repository: Path):
    """A row that went NaN with an accumulator leaves nothing behind: rows that reuse its slot are what they were."""
    plain = pb.SampleRequest(model="digits-ddpm", sampler="ddim", steps=4, seed=3)
    keeper = pb.SampleRequest(model="digits-ddpm", sampler="iddim", form="accumulator", steps=8, seed=4, labels=[2])
    with running_server(own_repository, limits=Limits(max_rows_in_flight=2)) as server:
        wanted = np.frombuffer(server.sample(plain).images.raw, "<f4")
        (runner,) = server.engine._runners.values()
        server.sample(keeper)
        runner._accumulator.fill(float("nan"))
        beside = server.later(keeper)
        answers = [server.later(plain) for _ in range(6)]
        for answer in answers:
            assert np.abs(np.frombuffer(answer.result().images.raw, "<f4") - wanted).max() <= 1e-5
        assert np.isfinite(np.frombuffer(beside.result().images.raw, "<f4")).all()
