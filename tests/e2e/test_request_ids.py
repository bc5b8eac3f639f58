"""Request ids and the log of a real server: what callers get back, and what operators read."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from protos import fewstep_pb2 as pb
from server.api.native import Scorer
from server.client import FewstepClient, FewstepError, cli
from server.config import Security
from server.observability.logs import JsonFormatter

from ..conftest import ROOT
from ..running import RunningServer, running_server

TOKEN = "t" * 40


def sample(**fields: Any) -> pb.SampleRequest:
    return pb.SampleRequest(**({"model": "digits-ddpm", "steps": 1, "seed": 1} | fields))


def id_of(call: Any) -> str:
    """The one id that a call came back with."""
    (found,) = [value for key, value in call.trailing_metadata() if key == "x-request-id"]
    return found


def refusal(function: Any, *arguments: Any, **options: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        function(*arguments, **options)
    return caught.value


def unary(server: RunningServer) -> Any:
    return server.channel.unary_unary(
        "/fewstep.v1.Sampler/Sample",
        request_serializer=pb.SampleRequest.SerializeToString,
        response_deserializer=pb.SampleResponse.FromString,
    )


@contextmanager
def logged(level: int) -> Iterator[list[dict[str, Any]]]:
    """The log of the servers in this process, as JSON; filled when the block ends."""
    stream, entries = io.StringIO(), []
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("server")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield entries
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        entries.extend(json.loads(line) for line in stream.getvalue().splitlines())


def test_a_callers_id_comes_back(server: RunningServer):
    """On success, on failure, and at the end of a stream."""
    metadata = (("x-request-id", "caller-7"),)
    _, call = unary(server).with_call(sample(), metadata=metadata, timeout=30)
    assert id_of(call) == "caller-7"
    assert id_of(refusal(server.sample, sample(steps=0), metadata=metadata)) == "caller-7"
    stream = server.stream(sample(), metadata=metadata)
    assert len(list(stream)) == 2
    assert id_of(stream) == "caller-7"


def test_a_call_without_a_usable_id_gets_one(server: RunningServer):
    """Each call another one; what cannot be passed on is not."""
    found = set()
    for metadata in ((), (("x-request-id", "a b"),), (("x-request-id", "x" * 129),)):
        _, call = unary(server).with_call(sample(), metadata=metadata, timeout=30)
        found.add(id_of(call))
    assert len(found) == 3
    assert all(len(made) == 16 for made in found)


def test_refused_callers_get_their_id_too(repository: Path, tmp_path: Path):
    """A call without credentials ends with an id, and its line in the log tells it and no token."""
    tokens = tmp_path / "tokens.toml"
    tokens.touch(mode=0o600)
    tokens.write_text(f'[clients.gallery]\ntokens = ["{TOKEN}"]\n')
    with logged(logging.DEBUG) as entries, running_server(repository, security=Security(tokens=tokens)) as server:
        wrong = (("authorization", "Bearer " + "w" * 40), ("x-request-id", "stranger"))
        assert id_of(refusal(server.sample, sample(), metadata=wrong)) == "stranger"
        right = (("authorization", f"Bearer {TOKEN}"), ("x-request-id", "friend"))
        server.sample(sample(), metadata=right)
    (refused,) = [entry for entry in entries if entry.get("request_id") == "stranger"]
    assert (refused["code"], refused["rpc"], refused["level"]) == ("UNAUTHENTICATED", "Sample", "info")
    (served,) = [entry for entry in entries if entry.get("request_id") == "friend"]
    assert (served["client"], served["code"]) == ("gallery", "OK")
    assert "wwww" not in str(entries)
    assert "tttt" not in str(entries)


def test_each_call_is_logged_once(repository: Path):
    """At debug what ended well, at info what callers did wrong, with the fields of each."""
    with logged(logging.DEBUG) as entries, running_server(repository) as server:
        server.sample(sample(), metadata=(("x-request-id", "good"),))
        refusal(server.sample, sample(model="nope\nforged"), metadata=(("x-request-id", "bad"),))
    (good,) = [entry for entry in entries if entry.get("request_id") == "good"]
    assert (good["level"], good["rpc"], good["model"], good["code"]) == ("debug", "Sample", "digits-ddpm", "OK")
    assert good["client"] == "127.0.0.1"
    assert 0 < good["seconds"] < 30
    (bad,) = [entry for entry in entries if entry.get("request_id") == "bad"]
    assert (bad["level"], bad["code"]) == ("info", "NOT_FOUND")
    assert "nope" in bad["message"]
    assert "\n" not in bad["message"]


def test_a_bug_is_logged_with_its_traceback_and_the_calls_id(repository: Path, monkeypatch: pytest.MonkeyPatch):
    """What no error of the table is ends INTERNAL, once in the log, at error."""

    async def broken(*arguments: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Scorer, "Score", broken)
    with logged(logging.INFO) as entries, running_server(repository) as server:
        error = refusal(server.score, pb.ScoreRequest(model="digits-vdrme"), metadata=(("x-request-id", "unlucky"),))
    assert (error.code(), id_of(error)) == (grpc.StatusCode.INTERNAL, "unlucky")
    (entry,) = [entry for entry in entries if entry.get("request_id") == "unlucky"]
    assert entry["level"] == "error"
    assert "RuntimeError: a bug" in entry["exception"]
    assert "in broken" in entry["exception"]


def test_requests_of_a_stream_go_under_its_id(repository: Path):
    """A request that fails in a stream is logged under the id of the call, beside the stream's own line."""
    answers: list[Any] = []
    with (
        logged(logging.DEBUG) as entries,
        running_server(repository) as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        client.start_stream(lambda result, error: answers.append(error), headers={"x-request-id": "stream-1"})
        tensor = triton.InferInput("SEED", [1, 1], "UINT64")
        tensor.set_data_from_numpy(np.array([[1]], dtype=np.uint64))
        client.async_stream_infer("digits-ddpm", [tensor], parameters={"steps": 0})
        client.async_stream_infer("digits-ddpm", [tensor], parameters={"steps": 1})
        client.stop_stream()
    assert [error is None for error in answers] == [False, True]
    own = [(entry["rpc"], entry["code"]) for entry in entries if entry.get("request_id") == "stream-1"]
    assert sorted(own) == [("ModelInfer", "INVALID_ARGUMENT"), ("ModelInfer", "OK"), ("ModelStreamInfer", "OK")]


@contextmanager
def server_process(repository: Path, *options: str) -> Iterator[tuple[str, list[str]]]:
    """A server's process: its address, and the lines of its log, there when the block ends."""
    command = [sys.executable, "-m", "server", "--repository", str(repository), "--port", "0", "--metrics-port", "0"]
    process = subprocess.Popen(
        [*command, *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    lines: list[str] = []
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready.startswith("ready "), process.communicate(timeout=30)
        yield ready.split()[1].removeprefix("grpc="), lines
        process.terminate()
        lines.extend(process.communicate(timeout=30)[1].splitlines())
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


def test_every_line_of_a_json_log_is_an_object(repository: Path):
    """From the first line on, with time, level, logger and message; those of calls with their fields."""
    with (
        server_process(repository, "--log-format", "json", "--log-level", "debug") as (address, lines),
        grpc.insecure_channel(address) as channel,
    ):
        call = channel.unary_unary("/fewstep.v1.Sampler/Sample", request_serializer=pb.SampleRequest.SerializeToString)
        call(sample(), timeout=30, metadata=(("x-request-id", "one"),))
        refusal(call, sample(model="x\ny"), timeout=30)
    entries = [json.loads(line) for line in lines]
    assert all({"time", "level", "logger", "message"} <= entry.keys() for entry in entries)
    assert [entry["code"] for entry in entries if "code" in entry] == ["OK", "NOT_FOUND"]


def test_a_flood_of_bad_requests_costs_few_lines(repository: Path):
    """By default some lines a second, and each of the others is counted in one of them."""
    with server_process(repository) as (address, lines), grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/fewstep.v1.Sampler/Sample", request_serializer=pb.SampleRequest.SerializeToString)
        for _ in range(300):
            refusal(call, sample(steps=0), timeout=30)
        threading.Event().wait(0.3)
        refusal(call, sample(steps=0), timeout=30)
    told = [line for line in lines if "INVALID_ARGUMENT" in line]
    left_out = sum(int(line.split("left_out=")[1].split("]")[0]) for line in told if "left_out=" in line)
    assert len(told) < 100
    assert len(told) + left_out == 301


def test_the_client_knows_the_id_of_a_call_that_failed(repository: Path, capsys):
    """The exception has the id that the log has, and so has what the command line prints."""
    with logged(logging.INFO) as entries, running_server(repository) as server:
        with FewstepClient(server.address) as client, pytest.raises(FewstepError) as caught:
            client.sample("digits-ddpm", steps=0)
        assert cli.main(["--address", server.address, "--json", "sample", "digits-ddpm", "--steps", "0"]) == cli.FAILED
    output = capsys.readouterr()
    printed = json.loads(output.out)["error"]["request_id"]
    assert f"(request {printed})" in output.err
    refused = [entry["request_id"] for entry in entries if entry.get("code") == "INVALID_ARGUMENT"]
    assert refused == [caught.value.request_id, printed]
