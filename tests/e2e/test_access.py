"""Who may call what, and how much of it: tokens, limits and message sizes of a real server, and the client's side."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from protos import fewstep_pb2 as pb
from protos import inference_pb2 as oip
from server.client import FewstepClient, FewstepError
from server.client.cli import main as client_main
from server.config import ClientLimits, Limits, Security

from ..certificates import Authority
from ..running import RunningServer, running_server
from .secured import ALICE, BOB, bearer, is_unauthenticated, refusal, sample


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        bearer(""),
        bearer("wrong" * 8),
        bearer(ALICE[:-1]),
        (("authorization", f"Basic {ALICE}"),),
        bearer(ALICE) * 2,
    ],
    ids=["none", "empty", "wrong", "short", "scheme", "two"],
)
def test_without_a_good_token_nothing_is_told(guarded: RunningServer, metadata: Any):
    """Every service and kind of call ends UNAUTHENTICATED with one message, whether the model or method exists."""
    requests = (
        ("Sampler", "Sample", sample()),
        ("Sampler", "Sample", sample(model="no-such-model")),
        ("Scorer", "Score", b"\xff\xff"),
        ("Models", "ListModels", pb.ListModelsRequest()),
        ("Models", "NoSuchMethod", pb.ListModelsRequest()),
    )
    for service, method, request in requests:
        error = refusal(guarded.call, service, method, request, pb.SampleResponse, metadata=metadata, timeout=10)
        assert is_unauthenticated(error), error
    assert is_unauthenticated(refusal(next, guarded.stream(sample(), metadata=metadata)))
    infer = guarded.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    assert is_unauthenticated(refusal(next, infer(iter([b""]), metadata=metadata, timeout=10)))
    ready = guarded.channel.unary_unary("/inference.GRPCInferenceService/ModelReady")
    assert is_unauthenticated(refusal(ready, b"", metadata=metadata, timeout=10))


def test_reflection_needs_a_token_and_probes_do_not(guarded: RunningServer):
    """Probes see whether the server is up; what it offers, and a watch that stays open, take a token."""
    health = health_pb2_grpc.HealthStub(guarded.channel)
    status = health.Check(health_pb2.HealthCheckRequest(), timeout=10).status
    assert status == health_pb2.HealthCheckResponse.SERVING
    for method, answer in (("ServerLive", oip.ServerLiveResponse), ("ServerReady", oip.ServerReadyResponse)):
        probe = guarded.channel.unary_unary(
            f"/inference.GRPCInferenceService/{method}", response_deserializer=answer.FromString
        )
        assert probe(b"", timeout=10) == answer(**{method.removeprefix("Server").lower(): True})
    assert is_unauthenticated(refusal(next, health.Watch(health_pb2.HealthCheckRequest(), timeout=10)))
    stub = reflection_pb2_grpc.ServerReflectionStub(guarded.channel).ServerReflectionInfo
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    assert is_unauthenticated(refusal(next, stub(iter([request]), timeout=10)))
    (answer,) = stub(iter([request]), timeout=10, metadata=bearer(ALICE))
    assert answer.list_services_response.service


def test_refused_calls_are_counted(guarded: RunningServer):
    """The metrics show how many calls came without credentials, under names that the server knows."""
    refusal(guarded.sample, sample())
    refusal(guarded.call, "Made", "Up", sample(), pb.SampleResponse, timeout=10)
    with urlopen(f"http://127.0.0.1:{guarded.app.metrics_port}/metrics", timeout=10) as page:
        text = page.read().decode()
    assert 'fewstep_request_seconds_count{code="UNAUTHENTICATED",model="",rpc="Sample"}' in text
    assert 'code="UNAUTHENTICATED",model="",rpc=""' in text
    assert 'rpc="Up"' not in text


def test_only_an_administrator_takes_models_out(guarded: RunningServer):
    """A client without the right gets PERMISSION_DENIED, and the model stays."""
    request = pb.ReloadModelRequest(model="digits-ddpm")
    error = refusal(
        guarded.call, "Models", "ReloadModel", request, pb.ReloadModelResponse, metadata=bearer(BOB), timeout=10
    )
    assert error.code() == grpc.StatusCode.PERMISSION_DENIED
    assert "client bob" in error.details()
    guarded.call("Models", "ReloadModel", request, pb.ReloadModelResponse, metadata=bearer(ALICE), timeout=10)
    for name in ("../digits-ddpm", "/etc", "digits-ddpm/1"):
        error = refusal(
            guarded.call, "Models", "LoadModel", pb.LoadModelRequest(model=name), pb.LoadModelResponse,
            metadata=bearer(ALICE), timeout=10,
        )  # fmt: skip
        assert error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)


def test_tokens_come_and_go_without_a_restart(one_model: Path, tmp_path: Path):
    """A token that is taken out of the file stops working within seconds, and its successor works."""
    path = tmp_path / "tokens.toml"
    path.touch(mode=0o600)
    path.write_text(f'[clients.alice]\ntokens = ["{ALICE}"]\n')
    with running_server(one_model, security=Security(tokens=path)) as server:
        assert server.sample(sample(), metadata=bearer(ALICE)).nfe == 1
        assert is_unauthenticated(refusal(server.sample, sample(), metadata=bearer(BOB)))
        path.write_text(f'[clients.bob]\ntokens = ["{BOB}"]\n')
        deadline = time.monotonic() + 10
        while True:
            try:
                server.sample(sample(), metadata=bearer(ALICE))
            except grpc.RpcError as error:
                assert is_unauthenticated(error)
                break
            assert time.monotonic() < deadline
            threading.Event().wait(0.05)
        assert server.sample(sample(), metadata=bearer(BOB)).nfe == 1


def retry_seconds(error: grpc.RpcError) -> float:
    (detail,) = rpc_status.from_call(error).details
    retry = error_details_pb2.RetryInfo()
    assert detail.Unpack(retry)
    return retry.retry_delay.ToNanoseconds() / 1e9


def test_a_client_over_its_rate_is_told_when_to_come_back(guarded: RunningServer):
    """Past its burst a client gets RESOURCE_EXHAUSTED with RetryInfo; another client is served."""
    errors = []
    for _ in range(3):
        try:
            guarded.sample(sample(), metadata=bearer(BOB))
        except grpc.RpcError as error:
            errors.append(error)
    assert errors
    assert errors[-1].code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert 1 < retry_seconds(errors[-1]) <= 100
    assert guarded.sample(sample(), metadata=bearer(ALICE)).nfe == 1


def test_a_client_over_its_rows_is_refused_until_they_end(one_model: Path):
    """Rows of an address are bounded over all of its calls, and free again when those end or are cancelled."""
    with running_server(one_model, security=Security(client=ClientLimits(rows=16))) as server:
        error = refusal(server.sample, sample(count=17))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "may have 16" in error.details()
        running = server.later(sample(count=12, steps=100))
        deadline = time.monotonic() + 10
        while not server.engine.batcher.jobs:
            assert time.monotonic() < deadline
            threading.Event().wait(0.002)
        error = refusal(server.sample, sample(count=8))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert retry_seconds(error) > 0
        running.cancel()
        while True:
            try:
                assert server.sample(sample(count=16)).nfe == 1
                break
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
                assert time.monotonic() < deadline


def test_each_request_of_a_stream_counts(one_model: Path):
    """A stream is no way around the rate: its requests past the burst are refused one by one, the stream goes on."""
    client = ClientLimits(requests_per_second=0.001, burst=3)
    with running_server(one_model, security=Security(client=client)) as server:
        stream = server.channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=oip.ModelInferRequest.SerializeToString,
            response_deserializer=oip.ModelStreamInferResponse.FromString,
        )
        requests = iter([oip.ModelInferRequest(model_name="no-such-model", id=str(i)) for i in range(5)])
        messages = [answer.error_message for answer in stream(requests, timeout=20)]
    assert len(messages) == 5
    assert ["requests a second" in message for message in messages] == [False, False, True, True, True]


def test_large_and_compressed_messages_are_refused_unread(one_model: Path):
    """A message over the bound ends RESOURCE_EXHAUSTED; a compressed one is not unpacked, whatever it would become."""
    with running_server(one_model, limits=Limits(max_message_bytes=1 << 20)) as server:
        large = pb.ScoreRequest(model="digits-vdrme", images=pb.Images(raw=bytes(2 << 20)))
        assert refusal(server.score, large).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        for algorithm in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            error = refusal(server.score, large, compression=algorithm)
            assert error.code() == grpc.StatusCode.UNIMPLEMENTED
            assert "disabled" in error.details()
        assert server.sample(sample()).nfe == 1


def test_the_metrics_page_listens_on_loopback(server: RunningServer):
    """The page's socket is bound to 127.0.0.1 alone."""
    assert server.app._http.address[0] == "127.0.0.1"


def test_the_client_speaks_tls_with_a_token(guarded: RunningServer, authority: Authority):
    """Unary calls and streams carry the token; a wrong one is an error with its code."""
    with FewstepClient(guarded.address, tls_ca=authority.path, token=ALICE) as client:
        assert client.sample("digits-ddpm", steps=1).nfe == 1
        assert len(list(client.sample_stream("digits-ddpm", steps=2))) == 3
        assert {model.name for model in client.models()} >= {"digits-ddpm"}
    for token in (None, "wrong" * 8):
        with (
            FewstepClient(guarded.address, tls_ca=authority.path, token=token) as client,
            pytest.raises(FewstepError) as caught,
        ):
            client.models()
        assert caught.value.code == grpc.StatusCode.UNAUTHENTICATED


def test_the_command_line_takes_credentials_from_files_and_the_environment(
    guarded: RunningServer,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Options and environment name files; an option goes before the environment; no option takes a token itself."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text(f"{ALICE}\n")
    bad.write_text("wrong" * 8)
    common = ["--address", guarded.address, "--json", "models"]
    assert client_main(["--tls-ca", str(authority.path), "--token-file", str(good), *common]) == 0
    assert "digits-ddpm" in {model["name"] for model in json.loads(capsys.readouterr().out)}
    monkeypatch.setenv("FEWSTEP_TLS_CA", str(authority.path))
    monkeypatch.setenv("FEWSTEP_TOKEN_FILE", str(bad))
    assert client_main(common) == 1
    assert "UNAUTHENTICATED" in capsys.readouterr().err
    assert client_main([*common, "--token-file", str(good)]) == 0
    monkeypatch.setenv("FEWSTEP_TOKEN_FILE", str(tmp_path / "missing"))
    assert client_main(common) == 2
    with pytest.raises(SystemExit):
        client_main(["--token", ALICE, *common])
    assert "Traceback" not in capsys.readouterr().err
