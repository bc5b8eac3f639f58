"""Requests of the Open Inference Protocol that cannot be answered: a code and a message, whatever comes."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

from protos import inference_pb2 as oip

from ..running import RunningServer
from .oip_client import SAMPLER, contents, labels, model_infer, seeds, tensor

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
