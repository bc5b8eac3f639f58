"""An Open Inference Protocol server with nothing of this project: Triton's own messages, and plain grpcio."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as rpc

# Inputs and outputs by model: (name, datatype, shape).
MODELS = {
    "sampler": ([("SEED", "UINT64", (-1, 1)), ("LABEL", "INT64", (-1, 1))], [("IMAGES", "FP32", (-1, 1, 4, 6))]),
    "scorer": ([("IMAGES", "FP32", (-1, 1, 4, 6))], [("ENERGY", "FP64", (-1, 1))]),
    "mixed": (
        [("A", "FP16", (-1, 3)), ("B", "INT8", (-1,)), ("C", "BOOL", (-1, 2, 2)), ("D", "BF16", (-1, 5))],
        [("SUM", "FP32", (-1, 1))],
    ),
    "unbatched": ([("X", "FP64", (2, 3))], [("Y", "FP64", (2, 1))]),
    "open": ([("X", "FP32", (-1, -1))], [("Y", "FP32", (-1,))]),
    "words": ([("X", "BYTES", (-1, 1))], [("Y", "FP32", (-1, 1))]),
    "full": ([("X", "FP32", (-1, 2))], [("Y", "FP32", (-1, 1))]),
    "short": ([("X", "FP32", (-1, 2))], [("Y", "FP32", (-1, 1))]),
}
SIZES = {"BOOL": 1, "INT8": 1, "FP16": 2, "BF16": 2, "FP32": 4, "FP64": 8, "INT64": 8, "UINT64": 8}


class OipServer(rpc.GRPCInferenceServiceServicer):
    """Answers with zeros of the right shapes; `full` has no room, `short` answers one row too few.

    requests: all that came. seconds: that each takes. lists, ready: whether it lists its models, and is ready.
    """

    def __init__(self) -> None:
        self.address = ""
        self.requests: list[pb.ModelInferRequest] = []
        self.seconds = 0.0
        self.lists = True
        self.ready = True

    def ServerReady(self, request: pb.ServerReadyRequest, context: grpc.ServicerContext) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self.ready)

    def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: grpc.ServicerContext
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name="other", version="9")

    def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: grpc.ServicerContext
    ) -> pb.RepositoryIndexResponse:
        if not self.lists:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such extension")
        kind = pb.RepositoryIndexResponse.ModelIndex
        return pb.RepositoryIndexResponse(models=[kind(name=name, version="1", state="READY") for name in MODELS])

    def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: grpc.ServicerContext
    ) -> pb.ModelMetadataResponse:
        if request.name not in MODELS:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.name!r}")
        kind = pb.ModelMetadataResponse.TensorMetadata
        inputs, outputs = (
            [kind(name=name, datatype=datatype, shape=shape) for name, datatype, shape in tensors]
            for tensors in MODELS[request.name]
        )
        return pb.ModelMetadataResponse(name=request.name, versions=["1"], inputs=inputs, outputs=outputs)

    def ModelInfer(self, request: pb.ModelInferRequest, context: grpc.ServicerContext) -> pb.ModelInferResponse:
        self.requests.append(request)
        time.sleep(self.seconds)
        if request.model_name == "full":
            context.abort(grpc.StatusCode.UNAVAILABLE, "exceeds maximum queue size")
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            if len(raw) != math.prod(tensor.shape) * SIZES[tensor.datatype]:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"unexpected size of {tensor.name}: {len(raw)}")
        rows = request.inputs[0].shape[0] - (request.model_name == "short")
        response = pb.ModelInferResponse(model_name=request.model_name, model_version="1")
        for name, datatype, shape in MODELS[request.model_name][1]:
            response.outputs.add(name=name, datatype=datatype, shape=(rows, *shape[1:]))
            response.raw_output_contents.append(np.zeros((rows, *shape[1:], SIZES[datatype]), np.uint8).tobytes())
        return response


@contextmanager
def oip_server() -> Iterator[OipServer]:
    """An OipServer on a free port of this machine."""
    other = OipServer()
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    rpc.add_GRPCInferenceServiceServicer_to_server(other, server)
    other.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield other
    finally:
        server.stop(grace=None).wait()
