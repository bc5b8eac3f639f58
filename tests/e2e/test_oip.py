"""The Open Inference Protocol through Triton's own client, unmodified: what it tells, samples, and who goes first."""

from __future__ import annotations

import queue
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

from protos import fewstep_pb2 as pb
from protos import inference_pb2 as oip
from server.config import Limits

from ..running import RunningServer, running_server, wait_until
from .oip_client import SAMPLER, idle, labels, model_infer, native, seeds, tensor

# -- the protocol -----------------------------------------------------------------------------------


def facts(*files: Any) -> set[tuple[Any, ...]]:
    """All that decides how the messages and methods of some generated modules look on the wire."""
    found: set[tuple[Any, ...]] = set()

    def walk(message: Any, prefix: str) -> None:
        name = f"{prefix}.{message.name}"
        for field in message.field:
            oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else None
            found.add((name, field.name, field.number, field.type, field.label, field.type_name, oneof))
        for nested in message.nested_type:
            walk(nested, name)

    for file in files:
        proto = descriptor_pb2.FileDescriptorProto()
        file.DESCRIPTOR.CopyToProto(proto)
        for message in proto.message_type:
            walk(message, proto.package)
        found |= {(proto.package, enum.name, v.name, v.number) for enum in proto.enum_type for v in enum.value}
        for service in proto.service:
            for m in service.method:
                kinds = m.input_type, m.output_type, m.client_streaming, m.server_streaming
                found.add((proto.package, service.name, m.name, *kinds))
    return found


def test_every_message_is_a_part_of_tritons():
    """Each field, value and method of inference.proto stands in the messages of Triton's client, with its number."""
    assert len(facts(oip)) > 100
    assert facts(oip) - facts(service_pb2, model_config_pb2) == set()


def test_server_and_models_tell_what_they_are(client: triton.InferenceServerClient):
    """Liveness, readiness, metadata, configuration and the index of models."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(SAMPLER)
    assert client.is_model_ready(SAMPLER, "1")
    assert not client.is_model_ready(SAMPLER, "2")
    assert not client.is_model_ready("nope")
    metadata = client.get_server_metadata()
    assert metadata.name == "fewstep"
    assert {"statistics", "model_configuration"} <= set(metadata.extensions)
    model = client.get_model_metadata(SAMPLER, as_json=True)
    assert (model["name"], model["versions"]) == (SAMPLER, ["1"])
    assert model["inputs"] == [
        {"name": "SEED", "datatype": "UINT64", "shape": ["-1", "1"]},
        {"name": "LABEL", "datatype": "INT64", "shape": ["-1", "1"]},
    ]
    assert model["outputs"] == [{"name": "IMAGES", "datatype": "FP32", "shape": ["-1", "1", "8", "8"]}]
    config = client.get_model_config(SAMPLER).config
    assert config.max_batch_size == 1024
    assert [(given.name, given.optional, list(given.dims)) for given in config.input] == [
        ("SEED", False, [1]),
        ("LABEL", True, [1]),
    ]
    assert config.output[0].data_type == model_config_pb2.TYPE_FP32
    index = client.get_model_repository_index().models
    assert (SAMPLER, "1", "READY") in [(entry.name, entry.version, entry.state) for entry in index]


def test_health_and_reflection_know_the_service(server: RunningServer):
    """The service is SERVING, and reflection gives its file and those of the native API."""
    health = health_pb2_grpc.HealthStub(server.channel)
    name = "inference.GRPCInferenceService"
    status = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10).status
    assert status == health_pb2.HealthCheckResponse.SERVING
    stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    for symbol in (name, "fewstep.v1.Sampler", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"):
        request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)
        (response,) = stub.ServerReflectionInfo(iter([request]), timeout=10)
        assert len(response.file_descriptor_response.file_descriptor_proto) >= 1, response


# -- sampling ---------------------------------------------------------------------------------------

OPTIONS = {
    "defaults": ({}, {}),
    "ddim": ({"sampler": "ddim", "steps": 3, "eta": 0.5}, {}),
    "iddim": ({"sampler": "iddim", "steps": 4, "m": 0.6, "form": "accumulator"}, {"m": [0.6]}),
    "m per step": ({"sampler": "iddim", "steps": 3, "m": "0.1, 0.9,0.4"}, {"m": [0.1, 0.9, 0.4]}),
    "custom": (
        {"sampler": "custom", "steps": 3, "weights": "1;1,3;0,1,1"},
        {"weights": [pb.Weights(values=row) for row in ([1], [1, 3], [0, 1, 1])]},
    ),
    "spacing and temperature": ({"steps": 5, "spacing": "linear", "temperature": 0.7}, {}),
    "numbers as text": ({"steps": "2", "guidance": "1.5"}, {"steps": 2, "guidance": 1.5}),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_samples_are_the_native_ones(server: RunningServer, client: triton.InferenceServerClient, case):
    """For every option, row i is the native sample of its own seed and label."""
    parameters, fields = OPTIONS[case]
    keys, digits = (7, 2**64 - 1, 7), (3, 5, 9)
    result = client.infer(SAMPLER, [seeds(*keys), labels(*digits)], parameters=parameters, request_id="a1")
    images = result.as_numpy("IMAGES")
    assert (images.shape, images.dtype) == ((3, 1, 8, 8), np.float32)
    for row, key, digit in zip(images, keys, digits, strict=True):
        assert np.abs(row - native(server, key, labels=[digit], **(parameters | fields))).max() <= 1e-5
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == (SAMPLER, "1", "a1")
    assert response.parameters["steps"].int64_param == int(parameters.get("steps", 10))
    assert response.parameters["compute_seconds"].double_param > 0


def test_seeds_may_be_int64_and_flat_and_come_without_labels(server: RunningServer, client):
    """INT64 seeds of shape [n] do; without labels samples are unconditional, as in the native API."""
    images = client.infer(SAMPLER, [tensor("SEED", [5, 6], "int64")], parameters={"steps": 2}).as_numpy("IMAGES")
    for row, seed in zip(images, (5, 6), strict=True):
        assert np.abs(row - native(server, seed, steps=2)).max() <= 1e-5


def test_a_row_does_not_depend_on_its_batch(client: triton.InferenceServerClient):
    """40 rows at once are the rows one by one."""
    many = client.infer(SAMPLER, [seeds(*range(40))], parameters={"steps": 2}).as_numpy("IMAGES")
    for seed in (0, 17, 39):
        one = client.infer(SAMPLER, [seeds(seed)], parameters={"steps": 2}).as_numpy("IMAGES")
        assert np.abs(one[0] - many[seed]).max() <= 1e-5


def test_typed_contents_are_taken_as_raw_ones_are(server: RunningServer, client: triton.InferenceServerClient):
    """Elements in the message's typed fields give the same answer as raw bytes."""
    request = oip.ModelInferRequest(model_name=SAMPLER, id="typed")
    request.parameters["steps"].int64_param = 2
    request.inputs.add(name="SEED", datatype="UINT64", shape=[2, 1]).contents.uint64_contents.extend([1, 2**64 - 1])
    request.inputs.add(name="LABEL", datatype="INT64", shape=[2, 1]).contents.int64_contents.extend([4, 5])
    response = model_infer(server, request)
    raw = client.infer(SAMPLER, [seeds(1, 2**64 - 1), labels(4, 5)], parameters={"steps": 2}).as_numpy("IMAGES")
    assert response.id == "typed"
    assert response.raw_output_contents[0] == raw.tobytes()


# -- scheduling -------------------------------------------------------------------------------------


def test_priority_and_timeout_are_tritons(server: RunningServer, client, monkeypatch: pytest.MonkeyPatch):
    """Priority 1 is the core's highest, 21 its lowest, 0 and 11 its default; a timeout is a deadline in us."""
    engine = server.engine
    submit, jobs = engine.submit, []
    monkeypatch.setattr(engine, "submit", lambda job: (jobs.append(job), submit(job)))
    for priority in (1, 0, 11, 21):
        client.infer(SAMPLER, [seeds(1)], parameters={"steps": 1}, priority=priority)
    assert [(job.priority, job.deadline) for job in jobs] == [(10, None), (0, None), (0, None), (-10, None)]
    client.infer(SAMPLER, [seeds(1)], parameters={"steps": 1}, timeout=30_000_000)
    assert jobs[-1].deadline == pytest.approx(jobs[-1].arrived + 30.0, abs=0.1)
    client.infer(SAMPLER, [seeds(1)], parameters={"steps": 1}, timeout=30_000_000, client_timeout=20.0)
    assert jobs[-1].deadline == pytest.approx(jobs[-1].arrived + 20.0, abs=1.0)


def test_a_full_queue_refuses_a_request_as_a_whole(repository: Path):
    """When the queue has no room for all rows, none is taken, and RESOURCE_EXHAUSTED reaches the client."""
    limits = Limits(max_rows_in_flight=4, max_waiting_rows=8)
    with running_server(repository, limits=limits) as server, triton.InferenceServerClient(server.address) as client:
        ahead = server.later(pb.SampleRequest(model=SAMPLER, count=64, steps=100, spacing="linear"))
        wait_until(lambda: server.engine.batcher.admission.waiting_rows > 0)
        with pytest.raises(InferenceServerException, match="retry in") as caught:
            client.infer(SAMPLER, [seeds(*range(8))], parameters={"steps": 1})
        assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        assert server.engine.batcher.jobs == 1
        ahead.cancel()
        wait_until(lambda: idle(server))
        assert client.infer(SAMPLER, [seeds(1)], parameters={"steps": 1}).as_numpy("IMAGES").shape[0] == 1


def test_a_cancelled_call_frees_its_rows(server: RunningServer, client: triton.InferenceServerClient):
    """Cancelling through Triton's client ends the call with CANCELLED and leaves no row behind."""
    results: queue.Queue[Any] = queue.Queue()
    call = client.async_infer(
        SAMPLER,
        [seeds(*range(64))],
        lambda result, error: results.put(error),
        parameters={"steps": 100, "spacing": "linear"},
    )
    wait_until(lambda: server.engine.batcher.jobs > 0)
    call.cancel()
    assert results.get(timeout=20).status() == "StatusCode.CANCELLED"
    wait_until(lambda: idle(server))


def test_a_call_ends_when_its_client_stops_waiting(server: RunningServer, client: triton.InferenceServerClient):
    """`client_timeout` ends the call with DEADLINE_EXCEEDED, and its rows leave."""
    with pytest.raises(InferenceServerException) as caught:
        client.infer(
            SAMPLER,
            [seeds(*range(256))],
            parameters={"steps": 100, "spacing": "linear"},
            client_timeout=0.2,
        )
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    wait_until(lambda: idle(server))


def test_native_calls_and_triton_calls_run_together(server: RunningServer, client: triton.InferenceServerClient):
    """Calls of both APIs that share batches get what they get alone."""
    expected = {seed: native(server, seed, steps=4) for seed in range(6)}

    def both(seed: int) -> tuple[np.ndarray, np.ndarray]:
        result = client.infer(SAMPLER, [seeds(seed)], parameters={"steps": 4})
        return result.as_numpy("IMAGES")[0], native(server, seed, steps=4)

    with ThreadPoolExecutor(6) as pool:
        for seed, images in enumerate(pool.map(both, range(6))):
            for image in images:
                assert np.abs(image - expected[seed]).max() <= 1e-5


def test_statistics_count_requests_and_rows(client: triton.InferenceServerClient):
    """What Triton's tools read: successes, failures, rows, and the time in the queue and in steps."""

    def read() -> Any:
        (statistics,) = client.get_inference_statistics(SAMPLER).model_stats
        return statistics

    before = read()
    client.infer(SAMPLER, [seeds(1, 2, 3)], parameters={"steps": 4})
    with pytest.raises(InferenceServerException):
        client.infer(SAMPLER, [seeds(1)], parameters={"steps": 0})
    after = read()
    old, new = before.inference_stats, after.inference_stats
    assert after.inference_count - before.inference_count == 3
    assert after.execution_count - before.execution_count >= 4
    assert (new.success.count - old.success.count, new.fail.count - old.fail.count) == (1, 1)
    spent = {part: getattr(new, part).ns - getattr(old, part).ns for part in ("success", "queue", "compute_infer")}
    assert 0 < spent["compute_infer"] <= spent["success"] - spent["queue"]
    assert {entry.name for entry in client.get_inference_statistics().model_stats} >= {SAMPLER}
