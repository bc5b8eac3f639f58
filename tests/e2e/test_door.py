"""More calls than can be read: those that have waited in vain are turned away unread, the others are answered."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from protos import fewstep_pb2 as pb
from protos import inference_pb2 as oip
from server import app
from server.api.backlog import LOOK_CALLS, open_calls, server_ids

from ..running import RunningServer, running_server, wait_until

REQUEST = pb.SampleRequest(model="digits-ddpm", sampler="ddim", steps=2, seed=5)
MANY = 10**6


class Crowded:
    """A server that believes whatever `calls` says of how many wait."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server
        self.calls = 0

    def look(self) -> None:
        for _ in range(LOOK_CALLS):
            self.server.call("Models", "GetServerStatus", pb.GetServerStatusRequest(), pb.GetServerStatusResponse)


@pytest.fixture
def crowded(own_repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Crowded]:
    found: list[Crowded] = []
    monkeypatch.setattr(app, "open_calls", lambda server_id: found[0].calls)
    with running_server(own_repository) as server:
        found.append(Crowded(server))
        yield found[0]


def image(response: pb.SampleResponse) -> np.ndarray:
    return np.frombuffer(response.images.raw, "<f4")


def test_a_call_with_less_time_left_than_it_has_waited_is_turned_away(crowded: Crowded):
    server = crowded.server
    before = image(server.sample(REQUEST))
    crowded.calls = MANY
    crowded.look()
    with pytest.raises(grpc.RpcError) as raised:
        server.sample(REQUEST, metadata=(("x-request-id", "mine"),))
    error = raised.value
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert re.search(r"\d+ calls wait to be read", error.details())
    assert ("x-request-id", "mine") in [(entry.key, entry.value) for entry in error.trailing_metadata()]
    retry = error_details_pb2.RetryInfo()
    assert rpc_status.from_call(error).details[0].Unpack(retry)
    assert retry.retry_delay.ToNanoseconds() > 1e9
    with urlopen(f"http://127.0.0.1:{server.app.metrics_port}/metrics", timeout=20) as page:
        counted = [line for line in page.read().decode().splitlines() if "RESOURCE_EXHAUSTED" in line]
    assert any(line.startswith("fewstep_request_seconds_count") and line.endswith(" 1.0") for line in counted)

    crowded.calls = 0
    crowded.look()
    assert np.array_equal(image(server.sample(REQUEST)), before)


def test_calls_that_have_time_are_answered_as_ever(crowded: Crowded):
    """One, a stream of answers, and streams of requests."""
    server = crowded.server
    before = image(server.sample(REQUEST))
    events = list(server.stream(REQUEST))
    crowded.calls = MANY
    crowded.look()
    stub = server.channel.unary_unary(
        "/fewstep.v1.Sampler/Sample",
        request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
        response_deserializer=pb.SampleResponse.FromString,
    )
    assert np.array_equal(image(stub(REQUEST)), before)
    streamed = server.channel.unary_stream(
        "/fewstep.v1.Sampler/SampleStream",
        request_serializer=pb.SampleRequest.SerializeToString,
        response_deserializer=pb.SampleEvent.FromString,
    )(REQUEST)
    found = list(streamed)
    assert len(found) == len(events)
    assert np.array_equal(image(found[-1].result), before)
    both = server.channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        request_serializer=oip.ModelInferRequest.SerializeToString,
        response_deserializer=oip.ModelStreamInferResponse.FromString,
    )(iter([oip.ModelInferRequest(model_name="nobody"), oip.ModelInferRequest(model_name="no one")]))
    assert ["nobody" in answer.error_message for answer in both] == [True, False]
    for bad in (b"\xff\xff", pb.SampleRequest(model="nobody")):
        with pytest.raises(grpc.RpcError) as raised:
            stub(bad)
        assert raised.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)


def test_a_call_without_a_message_is_refused(crowded: Crowded):
    crowded.calls = MANY
    crowded.look()
    nothing = crowded.server.channel.stream_stream(
        "/fewstep.v1.Sampler/Sample", request_serializer=None, response_deserializer=None
    )(iter(()))
    with pytest.raises(grpc.RpcError) as raised:
        list(nothing)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "no message" in raised.value.details()


def test_health_is_told_whatever_waits(crowded: Crowded):
    crowded.calls = MANY
    crowded.look()
    health = health_pb2_grpc.HealthStub(crowded.server.channel)
    status = health.Check(health_pb2.HealthCheckRequest(), timeout=20).status
    assert status == health_pb2.HealthCheckResponse.SERVING


def test_grpc_tells_of_calls_that_no_handler_has(own_repository: Path):
    """While the event loop is held, calls pile up before it; they are counted there, and all are answered later."""
    others = server_ids()
    with running_server(own_repository) as server:
        server.sample(REQUEST)
        (server_id,) = server_ids() - others
        held, go_on = threading.Event(), threading.Event()
        server.loop.call_soon_threadsafe(lambda: (held.set(), go_on.wait(60)))
        assert held.wait(20)
        try:
            answers = [server.later(pb.SampleRequest(model="digits-ddpm", steps=1, seed=seed)) for seed in range(100)]
            wait_until(lambda: open_calls(server_id) == 100)
        finally:
            go_on.set()
        assert all(answer.result().steps == 1 for answer in answers)
        wait_until(lambda: open_calls(server_id) == 0)
