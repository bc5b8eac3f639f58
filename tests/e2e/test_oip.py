"""The Open Inference Protocol through Triton's own client, unmodified: sync, asyncio, streams, beside native calls."""

from __future__ import annotations

import asyncio
import json
import queue
import shutil
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from models.data import load_digits_split
from protos import fewstep_pb2 as pb
from protos import inference_pb2 as oip
from server.config import Limits

from ..running import RunningServer, running_server, wait_until

SPLIT = load_digits_split()
SAMPLER = "digits-ddpm"
BOTH = "digits-vdrme"
SCORER = "digits-vdrme.score"


@pytest.fixture
def client(server: RunningServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.address) as client:
        yield client


def tensor(name: str, values: Any, dtype: str | None = None) -> triton.InferInput:
    array = np.asarray(values, dtype=dtype)
    given = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    return given.set_data_from_numpy(array)


def seeds(*values: int) -> triton.InferInput:
    return tensor("SEED", np.array(values, dtype=np.uint64)[:, None])


def labels(*values: int) -> triton.InferInput:
    return tensor("LABEL", np.array(values, dtype=np.int64)[:, None])


def native(server: RunningServer, seed: int, **fields: Any) -> np.ndarray:
    """The one image that the native API draws for a seed."""
    response = server.sample(pb.SampleRequest(**({"model": SAMPLER, "seed": seed} | fields)))
    return np.frombuffer(response.images.raw, "<f4").reshape(tuple(response.images.shape))[0]


def idle(server: RunningServer) -> bool:
    batcher = server.engine.batcher
    return (batcher.jobs, batcher.rows_in_flight, batcher.admission.waiting_rows) == (0, 0, 0)


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


def model_infer(server: RunningServer, request: oip.ModelInferRequest | bytes) -> oip.ModelInferResponse:
    """A ModelInfer call with a message as it is."""
    stub = server.channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
        response_deserializer=oip.ModelInferResponse.FromString,
    )
    return stub(request, timeout=60)


# -- errors -----------------------------------------------------------------------------------------

LONG = "x" * 100_000

BAD = {
    "unknown model": ({"model_name": "nope"}, "NOT_FOUND", "'nope' is not found; there are: checkerboard-vdrme"),
    "no scores": ({"model_name": "digits-ddpm.score"}, "NOT_FOUND", "'digits-ddpm.score'"),
    "unknown version": ({"model_version": "7"}, "NOT_FOUND", "version 7"),
    "version in words": ({"model_version": "newest"}, "INVALID_ARGUMENT", "'newest'"),
    "version 0": ({"model_version": "0"}, "INVALID_ARGUMENT", "version"),
    "missing input": ({"inputs": [labels(1)]}, "INVALID_ARGUMENT", "missing required input(s) ['SEED']"),
    "no input": ({"inputs": []}, "INVALID_ARGUMENT", "SEED"),
    "unknown input": ({"inputs": [seeds(1), tensor("X", [1])]}, "INVALID_ARGUMENT", "'X'"),
    "input twice": ({"inputs": [seeds(1), seeds(2)]}, "INVALID_ARGUMENT", "SEED: input comes twice"),
    "datatype": (
        {"inputs": [tensor("SEED", [[1.0]], "float32")]},
        "INVALID_ARGUMENT",
        "SEED: data-type must be UINT64 or INT64, got 'FP32'",
    ),
    "shape": (
        {"inputs": [tensor("SEED", [[1, 2]], "uint64")]},
        "INVALID_ARGUMENT",
        "SEED: shape must be [-1, 1], got [1, 2]",
    ),
    "no rows": ({"inputs": [tensor("SEED", np.zeros((0, 1), "uint64"))]}, "INVALID_ARGUMENT", "batch size"),
    "too many rows": (
        {"inputs": [tensor("SEED", np.zeros((1025, 1), "uint64"))]},
        "INVALID_ARGUMENT",
        "SEED: batch size must be within 1..1024, got 1025",
    ),
    "labels for other rows": (
        {"inputs": [seeds(1, 2), labels(1, 2, 3)]},
        "INVALID_ARGUMENT",
        "LABEL: must hold as many rows as SEED, 2, got 3",
    ),
    "negative seed": ({"inputs": [tensor("SEED", [[-3]], "int64")]}, "INVALID_ARGUMENT", "SEED: must not be negative"),
    "label 10": ({"inputs": [seeds(1), labels(10)]}, "NOT_FOUND", "LABEL: no label 10; there are 0..9"),
    "shared memory": (
        {"inputs": [triton.InferInput("SEED", [1, 1], "UINT64").set_shared_memory("region", 8)]},
        "INVALID_ARGUMENT",
        "shared memory",
    ),
    "unknown output": (
        {"outputs": [triton.InferRequestedOutput("PIXELS")]},
        "INVALID_ARGUMENT",
        "'PIXELS' for model 'digits-ddpm', allowed output names are: IMAGES",
    ),
    "classification": (
        {"outputs": [triton.InferRequestedOutput("IMAGES", class_count=3)]},
        "INVALID_ARGUMENT",
        "classification",
    ),
    "unknown parameter": ({"parameters": {"stepz": 3}}, "INVALID_ARGUMENT", "'stepz'"),
    "steps 0": ({"parameters": {"steps": 0}}, "INVALID_ARGUMENT", "steps: must be within 1..100, got 0"),
    "steps in words": ({"parameters": {"steps": "ten"}}, "INVALID_ARGUMENT", "steps: must be an integer, got 'ten'"),
    "steps true": ({"parameters": {"steps": True}}, "INVALID_ARGUMENT", "steps: must be an integer, got True"),
    "steps 10^20": ({"parameters": {"steps": str(10**20)}}, "INVALID_ARGUMENT", "steps: must be within"),
    "eta NaN": ({"parameters": {"eta": float("nan")}}, "INVALID_ARGUMENT", "eta"),
    "m in words": ({"parameters": {"m": "a,b"}}, "INVALID_ARGUMENT", "m: must be a number"),
    "weights as a number": ({"parameters": {"weights": 1.0}}, "INVALID_ARGUMENT", "weights: must be text"),
    "sampler as a number": ({"parameters": {"sampler": 3}}, "INVALID_ARGUMENT", "sampler: must be text"),
    "another model's sampler": ({"parameters": {"sampler": "vdrme"}}, "FAILED_PRECONDITION", "sampler"),
    "a scorer's parameter": ({"parameters": {"scales": "all"}}, "INVALID_ARGUMENT", "'scales'"),
    "a name of 100 kB": (
        {"parameters": {"sampler": "\u00e4" * 50_000}},
        "INVALID_ARGUMENT",
        "sampler: must hold at most 128 characters, got 50000",
    ),
    "a model of 100 kB": ({"model_name": LONG}, "INVALID_ARGUMENT", "model_name: must hold at most 128 characters"),
    "a version of 100 kB": ({"model_version": LONG}, "INVALID_ARGUMENT", "version: must hold at most 128 characters"),
    "an input of 100 kB": ({"inputs": [tensor(LONG, [1])]}, "INVALID_ARGUMENT", "inputs: must hold at most 128"),
    "a datatype of 100 kB": (
        {"inputs": [triton.InferInput("SEED", [1, 1], LONG)]},
        "INVALID_ARGUMENT",
        "SEED: must hold at most 128 characters",
    ),
    "a shape of 10,000 sizes": (
        {"inputs": [triton.InferInput("SEED", [1] * 10_000, "UINT64")]},
        "INVALID_ARGUMENT",
        "SEED: shape must hold at most 8 sizes, got 10000",
    ),
    "an output of 100 kB": (
        {"outputs": [triton.InferRequestedOutput(LONG)]},
        "INVALID_ARGUMENT",
        "outputs: must hold at most 128 characters",
    ),
    "a parameter of 100 kB": ({"parameters": {LONG: 1}}, "INVALID_ARGUMENT", "parameters: must hold at most 128"),
    "a value of 100 kB": ({"parameters": {"steps": LONG}}, "INVALID_ARGUMENT", "an integer, got 100000 characters"),
    "100,000 weights m": ({"parameters": {"m": "1," * 100_000}}, "INVALID_ARGUMENT", "m: must hold at most 1000"),
    "100,000 rows": ({"parameters": {"weights": ";" * 100_000}}, "INVALID_ARGUMENT", "weights: must hold at most 1000"),
    "priority 22": ({"priority": 22}, "INVALID_ARGUMENT", "priority: must be within 0..21, got 22"),
    "sequence": ({"sequence_id": 5}, "INVALID_ARGUMENT", "'sequence_"),
    "timeout of a microsecond": ({"timeout": 1}, "DEADLINE_EXCEEDED", "deadline"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_get_a_code_and_a_message_that_names_the_tensor(client: triton.InferenceServerClient, case):
    """Triton's client sees the table's code, and what came and is accepted; a good request after it is served."""
    fields, code, message = BAD[case]
    with pytest.raises(InferenceServerException) as caught:
        client.infer(**({"model_name": SAMPLER, "inputs": [seeds(1)]} | fields))
    assert caught.value.status() == f"StatusCode.{code}", caught.value
    assert message in caught.value.message()
    assert client.infer(SAMPLER, [seeds(1)], parameters={"steps": 1}).as_numpy("IMAGES").shape == (1, 1, 8, 8)


def contents(raw: list[bytes], *, typed: list[int] = (), shape: list[int] = (1, 1)) -> oip.ModelInferRequest:  # type: ignore[assignment]
    request = oip.ModelInferRequest(model_name=SAMPLER, raw_input_contents=raw)
    given = request.inputs.add(name="SEED", datatype="UINT64", shape=shape)
    if typed:
        given.contents.uint64_contents.extend(typed)
    return request


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (contents([bytes(4)]), "SEED: must hold 8 bytes for its shape and data-type, got 4"),
        (contents([bytes(8)] * 2), "raw_input_contents: must hold one entry for each of ['SEED'], got 2"),
        (contents([bytes(8)], typed=[1]), "SEED: contents must not be set where raw_input_contents is used"),
        (contents([], typed=[1, 2]), "SEED: must hold 1 elements in contents.uint64_contents for its shape, got 2"),
        (contents([]), "SEED: must hold 1 elements in contents.uint64_contents for its shape, got 0"),
        (contents([bytes(8)], shape=[2**62, 1]), "SEED: batch size must be within 1..1024"),
        (contents([bytes(8)], shape=[-1, 1]), "SEED: batch size must be within 1..1024"),
        (contents([bytes(8)], shape=[]), "SEED: shape must be [-1, 1], got []"),
        (b"\xff\xff\xff\xff", "not a inference.ModelInferRequest"),
    ],
)
def test_contents_that_do_not_fit_are_refused(server: RunningServer, request_, message):
    """Raw and typed contents must be of the tensor's size, and one of the two."""
    with pytest.raises(grpc.RpcError) as caught:
        model_infer(server, request_)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert message in caught.value.details()


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=300))
def test_garbage_bytes_never_hurt(server: RunningServer, data):
    """Random bytes in place of a message get a status of the table, never INTERNAL or a dead server."""
    with pytest.raises(grpc.RpcError) as caught:
        model_infer(server, data)
    assert caught.value.code().name in ("INVALID_ARGUMENT", "NOT_FOUND"), caught.value.details()


@st.composite
def requests_of_any_kind(draw: st.DrawFn) -> oip.ModelInferRequest:
    """Requests that are nearly right: names, datatypes, shapes, contents and parameters drawn apart from each other."""
    request = oip.ModelInferRequest(model_name=SAMPLER, raw_input_contents=draw(st.lists(st.binary(max_size=16))))
    for name in draw(st.lists(st.sampled_from(["SEED", "LABEL", "IMAGES", ""]), max_size=3)):
        kind = draw(st.sampled_from(["UINT64", "INT64", "FP32", "BYTES", ""]))
        given = request.inputs.add(
            name=name, datatype=kind, shape=draw(st.lists(st.sampled_from([-1, 0, 1, 2, 2**62])))
        )
        if draw(st.booleans()):
            given.contents.uint64_contents.extend(draw(st.lists(st.integers(0, 2**64 - 1), max_size=2)))
            given.contents.int64_contents.extend(draw(st.lists(st.integers(-1, 10), max_size=2)))
    names = st.sampled_from(["steps", "m", "weights", "eta", "sampler", "spacing", "priority", "timeout", "x"])
    values = st.one_of(
        st.builds(oip.InferParameter, bool_param=st.booleans()),
        st.builds(oip.InferParameter, int64_param=st.integers(-2, 12)),
        st.builds(oip.InferParameter, uint64_param=st.integers(0, 2**64 - 1)),
        st.builds(oip.InferParameter, double_param=st.floats()),
        st.builds(oip.InferParameter, string_param=st.text("0123456789.,;-e inf", max_size=8)),
        st.builds(oip.InferParameter),
    )
    for name, value in draw(st.dictionaries(names, values, max_size=2)).items():
        request.parameters[name].CopyFrom(value)
    for name in draw(st.lists(st.sampled_from(["IMAGES", "IMAGES", "ENERGY"]), max_size=2)):
        request.outputs.add(name=name)
    return request


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(request=requests_of_any_kind())
def test_any_request_is_answered_or_refused(server: RunningServer, request):
    """Whatever is in the fields: images for each seed, or a status of the table that is the caller's doing."""
    try:
        response = model_infer(server, request)
    except grpc.RpcError as error:
        codes = ("INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "DEADLINE_EXCEEDED")
        assert error.code().name in codes, error.details()
    else:
        rows = request.inputs[0].shape[0]
        assert list(response.outputs[0].shape) == [rows, 1, 8, 8]
        assert len(response.raw_output_contents[0]) == rows * 256


def test_what_is_left_out_is_unimplemented(client: triton.InferenceServerClient):
    """Methods of Triton that are not offered say so."""
    with pytest.raises(InferenceServerException, match="UNIMPLEMENTED"):
        client.get_system_shared_memory_status()


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


# -- streams ----------------------------------------------------------------------------------------


def test_a_stream_answers_every_request_with_its_id_and_in_order(server: RunningServer, client):
    """A slow request first, a bad one in the midst: answers in order, the error with its code, the stream goes on."""
    results: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: results.put((result, error)))
    steps = [40, 2, 0, 2, 1]
    for index, count in enumerate(steps):
        client.async_stream_infer(
            SAMPLER,
            [seeds(index)],
            request_id=f"request {index}",
            parameters={"steps": count},
            enable_empty_final_response=index == 1,
        )
    for index, count in enumerate(steps):
        result, error = results.get(timeout=30)
        if count == 0:
            assert "INVALID_ARGUMENT: steps: must be within 1..100, got 0" in error.message()
            continue
        response = result.get_response()
        assert response.id == f"request {index}"
        assert np.abs(result.as_numpy("IMAGES")[0] - native(server, index, steps=count)).max() <= 1e-5
        assert response.parameters["triton_final_response"].bool_param == (index == 1)
    client.stop_stream()
    assert results.empty()


def test_a_failed_request_of_a_stream_is_named(server: RunningServer):
    """The message with an error holds the id of the request that failed."""
    stub = stream(server)
    (answer,) = stub(iter([oip.ModelInferRequest(model_name="nope", id="x")]), timeout=30)
    assert answer.error_message.startswith("NOT_FOUND: ")
    assert answer.infer_response.id == "x"


def stream(server: RunningServer) -> Any:
    return server.channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
        response_deserializer=oip.ModelStreamInferResponse.FromString,
    )


def test_bytes_that_are_no_message_end_the_stream(server: RunningServer):
    """A stream is given up with INVALID_ARGUMENT where its next request cannot be read."""
    with pytest.raises(grpc.RpcError) as caught:
        list(stream(server)(iter([contents([bytes(8)]), b"\xff\xff"]), timeout=30))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_many_requests_go_through_one_stream(server: RunningServer, client: triton.InferenceServerClient):
    """More requests than run at a time: every one is answered, in order."""
    results: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: results.put((result, error)))
    for index in range(100):
        client.async_stream_infer(SAMPLER, [seeds(index)], request_id=str(index), parameters={"steps": 1})
    answers = [results.get(timeout=60)[0] for _ in range(100)]
    client.stop_stream()
    assert [answer.get_response().id for answer in answers] == [str(index) for index in range(100)]
    assert np.abs(answers[63].as_numpy("IMAGES")[0] - native(server, 63, steps=1)).max() <= 1e-5


def test_a_cancelled_stream_frees_its_rows(server: RunningServer, client: triton.InferenceServerClient):
    """Stopping a stream with its requests cancels all of them."""
    results: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: results.put(error))
    for _ in range(3):
        client.async_stream_infer(SAMPLER, [seeds(*range(64))], parameters={"steps": 100, "spacing": "linear"})
    wait_until(lambda: server.engine.batcher.jobs > 1)
    client.stop_stream(cancel_requests=True)
    assert results.get(timeout=20).status() == "StatusCode.CANCELLED"
    wait_until(lambda: idle(server))


# -- asyncio ----------------------------------------------------------------------------------------


def test_the_asyncio_client_works_too(server: RunningServer):
    """Readiness, ten inferences at once, a cancelled one and a stream, through `tritonclient.grpc.aio`."""

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for index in range(4):
            yield {
                "model_name": SAMPLER,
                "inputs": [seeds(index)],
                "request_id": str(index),
                "parameters": {"steps": 0 if index == 2 else 2},
            }

    async def run() -> tuple[list[Any], list[Any]]:
        async with triton_aio.InferenceServerClient(server.address) as client:
            assert await client.is_server_ready()
            slow = asyncio.ensure_future(
                client.infer(SAMPLER, [seeds(*range(64))], parameters={"steps": 100, "spacing": "linear"})
            )
            calls = [client.infer(SAMPLER, [seeds(seed)], parameters={"steps": 2}) for seed in range(10)]
            images = [result.as_numpy("IMAGES")[0] for result in await asyncio.gather(*calls)]
            slow.cancel()
            with pytest.raises(asyncio.CancelledError):
                await slow
            with pytest.raises(InferenceServerException, match="NOT_FOUND"):
                await client.infer("nope", [seeds(1)])
            answers = [answer async for answer in client.stream_infer(requests())]
            return images, answers

    images, answers = asyncio.run(run())
    for seed, image in enumerate(images):
        assert np.abs(image - native(server, seed, steps=2)).max() <= 1e-5
    assert [result and result.get_response().id for result, _ in answers] == ["0", "1", None, "3"]
    assert "steps" in answers[2][1].message()
    wait_until(lambda: idle(server))


# -- scoring ----------------------------------------------------------------------------------------

DIGITS = SPLIT.test.images[:5].astype(np.float32)


def images_input(images: np.ndarray) -> triton.InferInput:
    return tensor("IMAGES", images, "float32")


def native_scores(server: RunningServer, images: np.ndarray, **fields: Any) -> pb.ScoreResponse:
    given = pb.Images(shape=images.shape, raw=images.astype("<f4").tobytes())
    return server.score(pb.ScoreRequest(**({"model": BOTH, "images": given, "seed": 5} | fields)))


def test_scores_are_the_native_ones(server: RunningServer, client: triton.InferenceServerClient):
    """Energies of all scales with their percentiles, p-values and decisions, for digits and for noise."""
    noise = np.random.default_rng(0).uniform(-1, 1, DIGITS.shape)
    images = np.concatenate([DIGITS, noise]).astype(np.float32)
    parameters = {"scales": "all", "seed": 5, "false_alarm_rate": 0.1}
    result = client.infer(SCORER, [images_input(images)], parameters=parameters, request_id="s")
    expected = native_scores(server, images, scales=["all"], false_alarm_rate=0.1).scores
    for name, field, dtype in (
        ("ENERGY", "energy", np.float64),
        ("P_VALUE", "p_value", np.float64),
        ("PERCENTILE", "percentile", np.float64),
        ("OUT_OF_DISTRIBUTION", "out_of_distribution", np.bool_),
    ):
        values = result.as_numpy(name)
        assert (values.shape, values.dtype) == ((10, len(expected)), dtype)
        for column, score in zip(values.T, expected, strict=True):
            assert np.array_equal(column, getattr(score, field)), name
    response = result.get_response()
    assert response.id == "s"
    assert response.parameters["scales"].string_param == ",".join(score.scale for score in expected)
    assert response.parameters["seed"].int64_param == 5


def test_a_scorer_and_a_sampler_are_two_names(client: triton.InferenceServerClient):
    """A model that does both is listed as NAME and NAME.score, each with its own tensors."""
    index = dict.fromkeys(entry.name for entry in client.get_model_repository_index().models)
    assert [name for name in index if name.startswith(BOTH)] == [BOTH, SCORER]
    scorer = client.get_model_metadata(SCORER)
    assert [given.name for given in scorer.inputs] == ["IMAGES"]
    assert [given.name for given in scorer.outputs] == ["ENERGY", "P_VALUE", "PERCENTILE", "OUT_OF_DISTRIBUTION"]
    assert [given.name for given in client.get_model_metadata(BOTH).outputs] == ["IMAGES"]
    drawn = client.infer(BOTH, [seeds(3, 4)], parameters={"steps": 4}).as_numpy("IMAGES")
    energies = client.infer(SCORER, [images_input(np.clip(drawn, -1, 1))]).as_numpy("ENERGY")
    assert energies.shape == (2, 1)


def test_samples_of_every_family_are_the_native_ones(server: RunningServer, client: triton.InferenceServerClient):
    """VDRME's generator and Langevin dynamics on its energy, by seed."""
    for parameters in ({"sampler": "vdrme", "steps": 4}, {"sampler": "langevin", "steps": 6, "temperature": 1.0}):
        images = client.infer(BOTH, [seeds(8, 9)], parameters=parameters).as_numpy("IMAGES")
        for row, seed in zip(images, (8, 9), strict=True):
            assert np.abs(row - native(server, seed, model=BOTH, **parameters)).max() <= 1e-5


def test_only_the_outputs_asked_for_come(client: triton.InferenceServerClient):
    """Requested outputs come in the request's order, and no others."""
    outputs = [triton.InferRequestedOutput("P_VALUE"), triton.InferRequestedOutput("ENERGY")]
    result = client.infer(SCORER, [images_input(DIGITS)], outputs=outputs)
    assert [output.name for output in result.get_response().outputs] == ["P_VALUE", "ENERGY"]
    assert result.as_numpy("OUT_OF_DISTRIBUTION") is None


def test_typed_images_score_as_raw_ones_do(server: RunningServer, client: triton.InferenceServerClient):
    """FP32 elements in the message's typed field give the same energies."""
    request = oip.ModelInferRequest(model_name=SCORER)
    request.inputs.add(name="IMAGES", datatype="FP32", shape=DIGITS.shape).contents.fp32_contents.extend(DIGITS.ravel())
    request.outputs.add(name="ENERGY")
    energies = np.frombuffer(model_infer(server, request).raw_output_contents[0]).reshape(5, 1)
    assert np.array_equal(energies, client.infer(SCORER, [images_input(DIGITS)]).as_numpy("ENERGY"))


BAD_SCORES = {
    "shape": (
        {"inputs": [images_input(np.zeros((1, 1, 9, 9)))]},
        "INVALID_ARGUMENT",
        "IMAGES: shape must be [-1, 1, 8, 8], got [1, 1, 9, 9]",
    ),
    "datatype": (
        {"inputs": [tensor("IMAGES", DIGITS, "float64")]},
        "INVALID_ARGUMENT",
        "IMAGES: data-type must be FP32",
    ),
    "NaN": ({"inputs": [images_input(DIGITS * np.nan)]}, "INVALID_ARGUMENT", "IMAGES: image 0 holds a value"),
    "range": ({"inputs": [images_input(DIGITS * 9)]}, "INVALID_ARGUMENT", "IMAGES: values must be within [-1, 1]"),
    "unknown scale": ({"parameters": {"scales": "t7777"}}, "NOT_FOUND", "scales"),
    "a scale twice": ({"parameters": {"scales": "all,all"}}, "INVALID_ARGUMENT", "scales"),
    "false alarm rate": ({"parameters": {"false_alarm_rate": 1.5}}, "INVALID_ARGUMENT", "false_alarm_rate"),
    "a sampler's parameter": ({"parameters": {"steps": 3}}, "INVALID_ARGUMENT", "'steps'"),
    "unknown output": ({"outputs": [triton.InferRequestedOutput("IMAGES")]}, "INVALID_ARGUMENT", "'IMAGES'"),
}


@pytest.mark.parametrize("case", BAD_SCORES)
def test_bad_scores_get_a_code_and_a_message_that_names_the_tensor(client: triton.InferenceServerClient, case):
    """As for samples."""
    fields, code, message = BAD_SCORES[case]
    with pytest.raises(InferenceServerException) as caught:
        client.infer(**({"model_name": SCORER, "inputs": [images_input(DIGITS)]} | fields))
    assert caught.value.status() == f"StatusCode.{code}", caught.value
    assert message in caught.value.message()


def test_without_calibration_only_energies_come(repository: Path, tmp_path: Path):
    """A scale without calibration has an energy; asked for more, the server says what is missing."""
    newest = max((repository / BOTH).iterdir(), key=lambda version: int(version.name))
    bundle = shutil.copytree(newest, tmp_path / BOTH / newest.name)
    manifest = json.loads((bundle / "manifest.json").read_text())
    scales = manifest["card"]["energy"]["scales"]
    scales[0]["calibration"] = []
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with running_server(tmp_path) as server, triton.InferenceServerClient(server.address) as client:
        outputs = client.infer(SCORER, [images_input(DIGITS)]).get_response().outputs
        assert [output.name for output in outputs] == ["ENERGY"]
        metadata = client.get_model_metadata(SCORER).outputs
        others = any(scale["calibration"] for scale in scales[1:])
        assert ("P_VALUE" in [output.name for output in metadata]) == others
        with pytest.raises(InferenceServerException, match="no calibration for scale"):
            client.infer(SCORER, [images_input(DIGITS)], outputs=[triton.InferRequestedOutput("P_VALUE")])
