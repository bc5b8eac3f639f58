"""A device that is given steps ahead, in padded batches, and whose results come late, returns what the offline loop
returns: what there is of a GPU's ways without a GPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch

from export.runtime.device import batch_buckets
from models.run import run
from models.samplers import SampleOptions, compile_refine, compile_sample
from protos import fewstep_pb2 as pb
from server.config import Limits
from server.loop.device.plan import known_plans

from ..ahead import server_ahead
from ..running import RunningServer, wait_until
from .test_oracle import (
    CASES,
    REFINEMENTS,
    REQUESTS,
    crowd,
    digits,
    expected,
    images,
    offline,
    offline_energy,
    request,
    send,
)


@pytest.fixture(scope="module")
def ahead(repository: Path) -> Iterator[RunningServer]:
    # Few rows: each of the batch sizes is run for each network at the start.
    with server_ahead(repository, limits=Limits(step_seconds=60.0, max_batch_rows=16)) as server:
        yield server


def wanted(name: str, *, seed: int) -> np.ndarray:
    if name in CASES:
        return expected(name, seed=seed)
    fields = dict(REFINEMENTS[name])
    card, networks = offline(fields.pop("model"))
    program = compile_refine(card, SampleOptions(sampler=fields.pop("method"), **fields))
    return run(program, card, networks, seed=seed, count=3, images=torch.tensor(digits(3))).state.numpy()


@pytest.mark.parametrize("name", REQUESTS)
def test_it_returns_what_the_offline_loop_returns(ahead: RunningServer, name: str):
    """Samples and refinements of every kind, to 1e-4."""
    offline_images = wanted(name, seed=2**63 + 5)
    scale = max(1.0, float(np.abs(offline_images).max()))
    assert np.abs(images(send(ahead, name, seed=2**63 + 5)) - offline_images).max() <= 1e-4 * scale


def test_a_crowd_changes_nothing(ahead: RunningServer):
    """Nor does company: rows at all steps of all samplers in common padded batches."""
    for name, got in crowd(ahead, seed=3, others=20).items():
        offline_images = wanted(name, seed=100)
        assert np.abs(got - offline_images).max() <= 1e-4 * max(1.0, float(np.abs(offline_images).max())), name


def test_scores_are_the_offline_energies(ahead: RunningServer):
    """Scores come late, too."""
    message = pb.Images(shape=digits(5).shape, raw=digits(5).astype("<f4").tobytes())
    scores = ahead.score(pb.ScoreRequest(model="digits-vdrme", images=message)).scores[0]
    assert np.allclose(scores.energy, offline_energy("digits-vdrme", digits(5), 0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["iddim", "vdrme 4", "langevin", "metropolis", "latent"])
def test_previews_are_those_of_their_own_step(ahead: RunningServer, name: str):
    """Each step tells its own number, image and energy, though the row has gone on when its results arrive."""
    if name == "metropolis":
        parameters = {"metropolis": pb.Numbers(values=[1])}
        message = pb.SampleRequest(
            model="digits-vdrme", sampler="langevin", steps=9, parameters=parameters, seed=6, count=2
        )
        options = SampleOptions(sampler="langevin", steps=9, parameters=(("metropolis", (1.0,)),))
    else:
        message = request(name, seed=6, count=1 if "labels" in CASES[name] and len(CASES[name]["labels"]) == 1 else 3)
        fields = {key: value for key, value in CASES[name].items() if key not in ("model", "labels", "parameters")}
        parameters = {key: tuple(map(float, values)) for key, values in CASES[name].get("parameters", {}).items()}
        options = SampleOptions(
            **{**fields, "m": tuple(fields.get("m", ()))}, parameters=tuple(sorted(parameters.items()))
        )
    card, networks = offline(message.model)
    labels = list(message.labels) or None
    result = run(
        *(compile_sample(card, options), card, networks), seed=6, count=message.count, labels=labels, keep_trace=True
    )
    events = list(ahead.stream(message))
    previews = [event.preview for event in events if event.HasField("preview")]
    assert [preview.step for preview in previews] == list(range(1, len(result.previews) + 1))
    for preview, place in zip(previews, result.previews, strict=True):
        if place is None:
            assert not preview.HasField("image")
        else:
            got = np.frombuffer(preview.image.raw, "<f4")
            assert np.abs(got - place[0].numpy().ravel()).max() <= 1e-3 * max(1.0, float(place[0].abs().max()))
    assert np.abs(images(events[-1].result) - result.state.numpy()).max() <= 1e-3 * max(
        1.0, float(result.state.abs().max())
    )


def test_a_row_that_turns_non_finite_is_named_and_its_neighbours_are_unharmed(
    ahead: RunningServer, monkeypatch: pytest.MonkeyPatch
):
    """NaN is found when the row has gone on already: its request still ends with the step at which it came."""
    (key,) = (model.key for model in ahead.app.repository.models if model.key.name == "digits-ddpm")
    session = ahead.engine._runners[key]._sessions["denoiser"]
    run_network = session.run

    def poisoned(inputs):
        (output,) = run_network(inputs)
        late = (inputs["label"] == 6) & (inputs["time"] < 300)
        return (torch.where(late.view(-1, 1, 1, 1), torch.nan, output),)

    monkeypatch.setattr(session, "run", poisoned)
    good = [ahead.later(request("ddim one step", seed=seed)) for seed in range(4)]
    good += [ahead.later(request("radical", seed=seed)) for seed in range(4)]
    bad = ahead.later(pb.SampleRequest(model="digits-ddpm", sampler="ddim", steps=8, count=2, labels=[6]))
    assert bad.exception().code() == grpc.StatusCode.INTERNAL
    assert "non-finite at step 5 of 8" in bad.exception().details()
    for name, answers in (("ddim one step", good[:4]), ("radical", good[4:])):
        for seed, answer in enumerate(answers):
            assert np.abs(images(answer.result()) - expected(name, seed=seed)).max() <= 1e-4
    # Nor those who get its slots afterwards.
    for seed in range(3):
        assert np.abs(images(send(ahead, "radical", seed=seed)) - expected("radical", seed=seed)).max() <= 1e-4


def test_a_network_that_fails_on_many_rows_is_run_on_fewer(ahead: RunningServer, monkeypatch: pytest.MonkeyPatch):
    """As out of memory: halves are tried, whose rows start anew."""
    (key,) = (model.key for model in ahead.app.repository.models if model.key.name == "digits-ddpm")
    session = ahead.engine._runners[key]._sessions["denoiser"]
    run_network, failures = session.run, []

    def narrow(inputs):
        if len(inputs["sample"]) > 4:
            failures.append(len(inputs["sample"]))
            raise RuntimeError("out of memory")
        return run_network(inputs)

    monkeypatch.setattr(session, "run", narrow)
    got = images(ahead.sample(pb.SampleRequest(model="digits-ddpm", sampler="ddim", steps=5, seed=11, count=10)))
    assert np.abs(got - expected("ddim", seed=11, count=10)).max() <= 1e-4
    assert 16 in failures


def test_rows_that_were_cancelled_leave_their_slots(ahead: RunningServer):
    """Callers who leave in the middle leave nothing behind."""
    for seed in range(5):
        call = ahead.later(pb.SampleRequest(model="digits-vdrme", sampler="langevin", steps=500, seed=seed, count=8))
        threading.Event().wait(0.05)
        call.cancel()
    assert np.abs(images(send(ahead, "iddim", seed=4)) - expected("iddim", seed=4)).max() <= 1e-4
    engine = ahead.engine
    assert engine.drain(20)
    assert engine.batcher.rows_in_flight == 0


def test_steps_are_captured_once_for_each_plan_and_bucket(ahead: RunningServer):
    """Warm-up captures all that the models' own programs need, and requests capture nothing."""
    cards = [model.card for model in ahead.app.repository.models]
    sizes = len(batch_buckets(ahead.app.config.limits.max_batch_rows))
    assert ahead.late[0].captured == sizes * sum(len(known_plans(card)) for card in cards)
    networks = sum(len(card.networks) for card in cards)
    assert ahead.late[0].captured <= sizes * networks
    before = ahead.late[0].captured
    send(ahead, "custom", seed=1)
    assert ahead.late[0].captured == before


@contextmanager
def held(server: RunningServer) -> Iterator[None]:
    """No device ends a step meanwhile."""
    for late in server.late:
        late.go_on.clear()
    try:
        yield
    finally:
        for late in server.late:
            late.go_on.set()


def test_several_devices_share_the_requests(repository: Path):
    """A crowd runs on both, a request on one or both; answers, totals and models are those of one server.

    Both devices are held until all of the crowd is there, so that who goes where follows from what is predicted alone.
    """
    limits = Limits(step_seconds=60.0, max_batch_rows=8)
    with server_ahead(repository, devices=2, limits=limits) as server:
        with ThreadPoolExecutor(len(REQUESTS)) as pool, held(server):
            answers = {name: pool.submit(send, server, name, seed=100) for name in REQUESTS}
            wait_until(lambda: server.app.engines.totals().requests == len(REQUESTS))
            work = [engine.batcher.work for engine in server.app.engines]
            longest = max(row.job.work for row in server.app.engines.snapshot()[1])
        for name, answer in answers.items():
            offline_images = wanted(name, seed=100)
            error = np.abs(images(answer.result()) - offline_images).max()
            assert error <= 1e-4 * max(1.0, float(np.abs(offline_images).max())), name
        shares = [engine.batcher.counters.jobs for engine in server.app.engines]
        assert min(shares) > 0
        assert abs(work[0] - work[1]) <= longest
        assert [engine.batcher.work for engine in server.app.engines] == pytest.approx([0.0, 0.0], abs=1e-9)
        status = server.call("Models", "GetServerStatus", pb.GetServerStatusRequest(), pb.GetServerStatusResponse)
        assert status.requests_total == len(REQUESTS)
        assert status.ready
        unload = pb.UnloadModelRequest(model="digits-ddpm")
        server.call("Models", "UnloadModel", unload, pb.UnloadModelResponse)
        with pytest.raises(grpc.RpcError) as raised:
            server.sample(pb.SampleRequest(model="digits-ddpm"))
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND


def test_the_rows_of_one_request_are_shared_out(repository: Path):
    """Samples, energies and the steps that are shown come from two idle devices as from one."""
    with server_ahead(repository, devices=2, limits=Limits(step_seconds=60.0, max_batch_rows=8)) as server:
        batches = [engine.batcher.counters for engine in server.app.engines]
        asked = pb.SampleRequest(model="digits-ddpm", sampler="ddim", steps=5, seed=9, count=12)
        got = server.sample(asked)
        assert np.abs(images(got) - expected("ddim", seed=9, count=12)).max() <= 1e-4
        assert [counters.batches for counters in batches] == [5, 5]
        assert got.timing.steps == 10
        assert got.timing.mean_batch_rows == 6
        assert 0.0 < got.timing.compute_seconds <= got.timing.total_seconds
        events = list(server.stream(asked))
        assert [event.preview.step for event in events[:-1]] == [1, 2, 3, 4, 5]
        assert np.abs(images(events[-1].result) - images(got)).max() <= 1e-5
        before = [counters.batches for counters in batches]
        sent = pb.Images(shape=digits(9).shape, raw=digits(9).astype("<f4").tobytes())
        scores = server.score(pb.ScoreRequest(model="digits-vdrme", images=sent)).scores[0]
        assert np.allclose(scores.energy, offline_energy("digits-vdrme", digits(9), 0), rtol=1e-4, atol=1e-4)
        assert all(counters.batches > earlier for counters, earlier in zip(batches, before, strict=True))
