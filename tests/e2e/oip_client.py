"""What the tests of the Open Inference Protocol send, and what it is compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype

from protos import fewstep_pb2 as pb
from protos import inference_pb2 as oip

from ..running import RunningServer

SAMPLER = "digits-ddpm"
BOTH = "digits-vdrme"
SCORER = "digits-vdrme.score"


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


def model_infer(server: RunningServer, request: oip.ModelInferRequest | bytes) -> oip.ModelInferResponse:
    """A ModelInfer call with a message as it is."""
    stub = server.channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
        response_deserializer=oip.ModelInferResponse.FromString,
    )
    return stub(request, timeout=60)


def contents(raw: list[bytes], *, typed: list[int] = (), shape: list[int] = (1, 1)) -> oip.ModelInferRequest:  # type: ignore[assignment]
    request = oip.ModelInferRequest(model_name=SAMPLER, raw_input_contents=raw)
    given = request.inputs.add(name="SEED", datatype="UINT64", shape=shape)
    if typed:
        given.contents.uint64_contents.extend(typed)
    return request
