"""The process from outside: start, refuse to start, drain, stop."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc

from export.runtime.onnxruntime import OnnxRuntime
from protos import fewstep_pb2 as pb
from server import repository as repository_module
from server.app import App
from server.config import Config, ConfigError, Limits
from server.types import Job

from ..conftest import ROOT
from ..running import UNCUT, running_server, wait_until


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


def manage(server, method: str, **fields):
    request = getattr(pb, f"{method}Request")(**fields)
    return server.call("Models", method, request, getattr(pb, f"{method}Response"), timeout=60)


def next_version(source: Path) -> Path:
    """A copy of a bundle beside it, one version further."""
    target = source.parent / str(int(source.name) + 1)
    shutil.copytree(source, target)
    manifest = json.loads((target / "manifest.json").read_text())
    (target / "manifest.json").write_text(json.dumps(manifest | {"version": int(target.name)}))
    return target


def sample_natively(server) -> int:
    return server.sample(pb.SampleRequest(model="digits-ddpm", steps=1)).version


def sample_as_a_stream(server) -> int:
    *_, last = server.stream(pb.SampleRequest(model="digits-ddpm", steps=2))
    return last.result.version


def sample_as_triton(server) -> int:
    with triton.InferenceServerClient(server.address) as client:
        seed = triton.InferInput("SEED", [1, 1], "UINT64")
        seed.set_data_from_numpy(np.zeros((1, 1), np.uint64))
        answered = client.infer("digits-ddpm", [seed]).get_response()
        counted = client.get_inference_statistics("digits-ddpm").model_stats
    assert [stats.inference_stats.fail.count for stats in counted] == [0]
    return int(answered.model_version)


@pytest.mark.parametrize("sample", [sample_natively, sample_as_a_stream, sample_as_triton])
def test_a_model_replaced_between_lookup_and_submission_costs_no_request(own_repository: Path, monkeypatch, sample):
    """The model that a job was made for goes before the engine gets the job: the job is made anew."""
    (source,) = (own_repository / "digits-ddpm").iterdir()
    with running_server(own_repository) as server:
        submit, jobs = server.engine.submit, []

        def submit_late(job: Job) -> None:
            if not jobs:
                next_version(source)
                shutil.rmtree(source)
                server.app.repository.reload("digits-ddpm")
            jobs.append(job)
            submit(job)

        monkeypatch.setattr(server.engine, "submit", submit_late)
        assert sample(server) == int(source.name) + 1
        assert [job.model.version for job in jobs] == [int(source.name), int(source.name) + 1]


def test_models_come_and_go_without_dropping_a_request(own_repository: Path):
    """While requests run without pause, a version is added, reloaded and unloaded; every request is answered."""
    name = "digits-ddpm"
    with running_server(own_repository) as server:
        stop, answered, failures = threading.Event(), [], []

        def ask() -> None:
            while not stop.is_set():
                try:
                    answered.append(server.sample(pb.SampleRequest(model=name, steps=4, count=3, seed=1)))
                except grpc.RpcError as error:
                    failures.append(error)

        askers = [threading.Thread(target=ask) for _ in range(4)]
        for asker in askers:
            asker.start()
        source = next((own_repository / name).iterdir())
        first = int(source.name)
        next_version(source)
        assert {m.version for m in manage(server, "ReloadModel", model=name).models} == {first, first + 1}
        assert manage(server, "LoadModel", model=name, version=first + 1).model.version == first + 1
        assert manage(server, "UnloadModel", model=name, version=first).model.version == first
        shutil.rmtree(source)
        assert [m.version for m in manage(server, "ReloadModel", model=name).models] == [first + 1]
        stop.set()
        for asker in askers:
            asker.join(30)
        assert not failures
        assert {response.version for response in answered} <= {first, first + 1}
        assert len({response.images.raw for response in answered}) <= 2
        assert server.sample(pb.SampleRequest(model=name, steps=1)).version == first + 1
        with pytest.raises(grpc.RpcError) as gone:
            server.sample(pb.SampleRequest(model=name, version=first, steps=1))
        assert gone.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_failed_reload_keeps_what_was_loaded(own_repository: Path):
    """A corrupt new version is refused by name, and the old one goes on serving."""
    name = "digits-ddpm"
    source = next((own_repository / name).iterdir())
    target = own_repository / name / str(int(source.name) + 1)
    with running_server(own_repository) as server:
        shutil.copytree(source, target)
        text = (target / "manifest.json").read_text()
        (target / "manifest.json").write_text(json.dumps(json.loads(text) | {"version": int(target.name)}))
        graph = next(target.glob("*.onnx"))
        graph.write_bytes(graph.read_bytes()[:-1])
        with pytest.raises(grpc.RpcError) as refused:
            manage(server, "ReloadModel", model=name)
        assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert graph.name in refused.value.details()
        assert server.sample(pb.SampleRequest(model=name, steps=1)).version == int(source.name)


class Broken:
    """A network that loads, and fails when it runs."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def run(self, inputs):
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("no kernel image"), OSError("gone"), MemoryError("too much")])
def test_a_bundle_that_cannot_warm_up_is_refused_and_the_old_one_stays(own_repository: Path, error, monkeypatch):
    """Whatever an engine raises, loading is FAILED_PRECONDITION with its words, and what was loaded serves on."""
    name = "digits-ddpm"
    (source,) = (own_repository / name).iterdir()
    with running_server(own_repository) as server:
        monkeypatch.setattr(OnnxRuntime, "load", lambda *_: Broken(error))
        manifest = source / "manifest.json"
        manifest.write_text(manifest.read_text() + "\n")
        for method in ("LoadModel", "ReloadModel"):
            with pytest.raises(grpc.RpcError) as refused:
                manage(server, method, model=name)
            assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION, refused.value.details()
            assert str(error) in refused.value.details()
        assert server.sample(pb.SampleRequest(model=name, steps=1)).version == int(source.name)


def test_a_file_that_vanishes_while_it_is_loaded_is_a_failed_precondition(own_repository: Path, monkeypatch):
    """Between the look at the directory and the reading of a file it may go; the server says so and serves on."""
    name = "digits-ddpm"
    (source,) = (own_repository / name).iterdir()

    def vanished(path):
        raise FileNotFoundError(2, "No such file or directory", str(path))

    with running_server(own_repository) as server:
        monkeypatch.setattr(repository_module, "sha256_of", vanished)
        for method in ("LoadModel", "ReloadModel"):
            with pytest.raises(grpc.RpcError) as refused:
                manage(server, method, model=name)
            assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
            assert "manifest.json" in refused.value.details()
        assert server.sample(pb.SampleRequest(model=name, steps=1)).version == int(source.name)


def test_a_server_whose_network_cannot_run_does_not_start(own_repository: Path, monkeypatch):
    """At the start the same failure is a bad configuration (exit code 2), told with the bundle."""
    monkeypatch.setattr(OnnxRuntime, "load", lambda *_: Broken(RuntimeError("no kernel image")))
    app = App(Config(repository=own_repository, port=0, metrics_port=0))
    with pytest.raises(ConfigError, match=r"digits-ddpm.*no kernel image"):
        asyncio.run(app.start())


def test_unknown_models_cannot_be_loaded_or_unloaded(own_repository: Path):
    """NOT_FOUND for names and versions that are neither on disk nor loaded; paths are not names."""
    with running_server(own_repository) as server:
        for method, fields in (
            ("LoadModel", {"model": "nope"}),
            ("LoadModel", {"model": "digits-ddpm", "version": 99}),
            ("LoadModel", {"model": "../digits-ddpm"}),
            ("UnloadModel", {"model": "nope"}),
            ("ReloadModel", {"model": "nope"}),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                manage(server, method, **fields)
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND, method


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
