"""Models that come, go and are replaced while requests are served, and bundles that cannot be used."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from export.runtime.onnxruntime import OnnxRuntime
from protos import fewstep_pb2 as pb
from server import repository as repository_module
from server.app import App
from server.config import Config, ConfigError
from server.types import Job

from ..running import running_server


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
