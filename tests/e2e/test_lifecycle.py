"""The process from outside: start, refuse to start, drain, stop."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos import fewstep_pb2 as pb

from ..conftest import ROOT
from ..running import running_server, wait_until


def start(repository: Path, *options: str) -> tuple[subprocess.Popen, str]:
    command = [
        sys.executable,
        "-m",
        "server",
        "--repository",
        str(repository),
        "--port",
        "0",
        "--metrics-port",
        "0",
        *options,
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    if not line.startswith("ready "):
        pytest.fail(f"no ready line: {line!r} {process.communicate(timeout=30)}")
    return process, line.split()[1].removeprefix("grpc=")


def sampler(address: str):
    channel = grpc.insecure_channel(address)
    return channel.unary_unary(
        "/fewstep.v1.Sampler/Sample",
        request_serializer=pb.SampleRequest.SerializeToString,
        response_deserializer=pb.SampleResponse.FromString,
    )


def rows_in_flight(channel: grpc.Channel) -> int:
    call = channel.unary_unary(
        "/fewstep.v1.Models/GetServerStatus",
        request_serializer=pb.GetServerStatusRequest.SerializeToString,
        response_deserializer=pb.GetServerStatusResponse.FromString,
    )
    return call(pb.GetServerStatusRequest(), timeout=20).rows_in_flight


def health_of(channel: grpc.Channel) -> int:
    return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20).status


def test_sigterm_finishes_what_runs_refuses_what_comes_and_exits_with_zero(repository: Path):
    """On SIGTERM rows in flight finish and are answered, new work is UNAVAILABLE, and the exit code is 0."""
    process, address = start(repository)
    try:
        call = sampler(address)
        call(pb.SampleRequest(model="digits-ddpm", steps=1), timeout=30)
        # Without a deadline: whether one could be met depends on how long the first, cold step took.
        running = [call.future(pb.SampleRequest(model="digits-ddpm", steps=100, count=48, seed=i)) for i in range(3)]
        with grpc.insecure_channel(address) as channel:
            wait_until(lambda: rows_in_flight(channel) == 3 * 48)
            assert not any(future.done() for future in running)
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: health_of(channel) == health_pb2.HealthCheckResponse.NOT_SERVING)
        with pytest.raises(grpc.RpcError) as refused:
            call(pb.SampleRequest(model="digits-ddpm", steps=1), timeout=30)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        assert all(len(future.result(60).images.raw) == 48 * 256 for future in running)
        assert process.wait(30) == 0
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()


def test_a_drain_that_takes_too_long_is_cut_and_says_so(repository: Path):
    """With a drain bound of zero, unfinished requests end UNAVAILABLE and the exit code is not 0."""
    process, address = start(repository, "--drain-seconds", "0")
    try:
        future = sampler(address).future(pb.SampleRequest(model="digits-ddpm", steps=100, count=256))
        with grpc.insecure_channel(address) as channel:
            wait_until(lambda: rows_in_flight(channel) == 256)
        process.send_signal(signal.SIGTERM)
        assert future.exception(30).code() == grpc.StatusCode.UNAVAILABLE
        assert process.wait(30) == 1
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--repository", "/nonexistent"], "not a directory"),
        (["--repository", "{empty}"], "holds no bundle"),
        (["--repository", "{repository}", "--engine", "magic"], "engine"),
        (["--repository", "{repository}", "--port", "{taken}"], "cannot listen"),
        (["--repository", "{repository}", "--port", "0", "--metrics-port", "{taken}"], "metrics_port"),
        (["--repository", "{repository}", "--port", "70000"], "port"),
        (["--repository", "{repository}", "--max-batch-rows", "0"], "max_batch_rows"),
        (["--repository", "{repository}", "--nonsense"], "nonsense"),
        (["--repository", "{corrupt}"], "SHA-256"),
    ],
)
def test_a_bad_configuration_is_refused_with_a_message(repository: Path, tmp_path: Path, options, message):
    """Exit code 2 and one line that names the option or the file; no stack trace."""
    (tmp_path / "empty").mkdir()
    corrupt = tmp_path / "corrupt" / "digits-ddpm"
    source = next((repository / "digits-ddpm").iterdir())
    target = corrupt / source.name
    target.mkdir(parents=True)
    for file in source.iterdir():
        data = file.read_bytes()
        (target / file.name).write_bytes(data[:-1] + b"x" if file.suffix == ".onnx" else data)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        names = {
            "empty": tmp_path / "empty",
            "repository": repository,
            "corrupt": tmp_path / "corrupt",
            "taken": taken.getsockname()[1],
        }
        command = [sys.executable, "-m", "server", *(option.format(**names) for option in options)]
        if "--port" not in options:
            command += ["--port", "0", "--metrics-port", "0"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_serving_imports_neither_diffusers_nor_an_exporter(repository: Path):
    """With the default engine a loaded server has no diffusers, onnx or onnxscript among its modules."""
    code = (
        "import asyncio, sys; from pathlib import Path; from server.app import App; from server.config import Config\n"
        f"app = App(Config(repository=Path({str(repository)!r}), port=0, metrics_port=0))\n"
        "async def main():\n    await app.start(); await app.stop()\n"
        "asyncio.run(main())\n"
        "heavy = {'diffusers', 'onnx', 'onnxscript', 'transformers', 'sklearn', 'scipy', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "[]", result.stderr


def test_the_engine_thread_never_dies_silently(repository: Path):
    """If the loop itself fails, callers get INTERNAL, health turns NOT_SERVING, and new calls are refused."""
    with running_server(repository) as server:
        server.sample(pb.SampleRequest(model="digits-ddpm", steps=1))

        batcher = server.engine.batcher
        schedule = batcher.schedule

        def broken(begins: float):
            if batcher.idle:  # the engine may not have come back yet from the step that was just answered
                return schedule(begins)
            raise RuntimeError("scheduler bug")

        batcher.schedule = broken
        with pytest.raises(grpc.RpcError) as caught:
            server.sample(pb.SampleRequest(model="digits-ddpm", steps=1))
        assert caught.value.code() == grpc.StatusCode.INTERNAL
        assert "scheduler bug" in caught.value.details()
        health = health_pb2_grpc.HealthStub(server.channel)
        deadline = time.monotonic() + 5
        while health.Check(health_pb2.HealthCheckRequest()).status != health_pb2.HealthCheckResponse.NOT_SERVING:
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)
        with pytest.raises(grpc.RpcError) as caught:
            server.sample(pb.SampleRequest(model="digits-ddpm", steps=1))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
