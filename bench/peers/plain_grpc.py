"""A plain grpcio server, as one writes it in an afternoon: Open Inference Protocol, one call at a time, no batching.

A pool of threads answers the calls, and a lock keeps the engine to one of them: what a batcher has to be better than.
Calls whose deadline passed while they waited for the engine are not run.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np

from protos import inference_pb2 as oip
from protos import inference_pb2_grpc as rpc

from .engine import Engine, Request, load_engines
from .serving import HOST, read_options

CALLS_AT_ONCE = 64
SCORE = ".score"
ENDS = (signal.SIGTERM, signal.SIGINT)
DTYPES = {"UINT64": "<u8", "INT64": "<i8", "FP32": "<f4", "FP64": "<f8"}


class PlainService(rpc.GRPCInferenceServiceServicer):
    """The calls that the comparison makes."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self._engines = engines
        self._lock = threading.Lock()

    def ServerReady(self, request: oip.ServerReadyRequest, context: grpc.ServicerContext) -> oip.ServerReadyResponse:
        return oip.ServerReadyResponse(ready=True)

    def ServerMetadata(
        self, request: oip.ServerMetadataRequest, context: grpc.ServicerContext
    ) -> oip.ServerMetadataResponse:
        return oip.ServerMetadataResponse(name="plain grpcio", version=grpc.__version__)

    def ModelReady(self, request: oip.ModelReadyRequest, context: grpc.ServicerContext) -> oip.ModelReadyResponse:
        return oip.ModelReadyResponse(ready=request.name.removesuffix(SCORE) in self._engines)

    def ModelMetadata(
        self, request: oip.ModelMetadataRequest, context: grpc.ServicerContext
    ) -> oip.ModelMetadataResponse:
        image = list(self._engine(request.name, context).card.image.shape)
        tensor = oip.ModelMetadataResponse.TensorMetadata
        images = tensor(name="IMAGES", datatype="FP32", shape=[-1, *image])
        seed = tensor(name="SEED", datatype="UINT64", shape=[-1, 1])
        energy = tensor(name="ENERGY", datatype="FP64", shape=[-1, 1])
        inputs, outputs = (images, energy) if request.name.endswith(SCORE) else (seed, images)
        return oip.ModelMetadataResponse(name=request.name, versions=["1"], inputs=[inputs], outputs=[outputs])

    def ModelInfer(self, request: oip.ModelInferRequest, context: grpc.ServicerContext) -> oip.ModelInferResponse:
        engine = self._engine(request.model_name, context)
        try:
            inputs = _inputs(request)
            scores = request.model_name.endswith(SCORE)
            asked = engine.score_request(inputs["IMAGES"]) if scores else _sample(engine, request, inputs)
        except (ValueError, KeyError) as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        with self._lock:
            if not context.is_active():
                context.abort(grpc.StatusCode.CANCELLED, "the caller has gone")
            found = engine.run([asked])[0]
        response = oip.ModelInferResponse(model_name=request.model_name, id=request.id)
        output, datatype = ("ENERGY", "FP64") if scores else ("IMAGES", "FP32")
        array = found[:, None] if scores else found
        response.outputs.add(name=output, datatype=datatype, shape=array.shape)
        response.raw_output_contents.append(array.tobytes())
        return response

    def _engine(self, name: str, context: grpc.ServicerContext) -> Engine:
        engine = self._engines.get(name.removesuffix(SCORE))
        if engine is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no model {name!r}; there are {', '.join(self._engines)}")
        return engine


def _inputs(request: oip.ModelInferRequest) -> dict[str, Any]:
    arrays = {}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        arrays[tensor.name] = np.frombuffer(raw, DTYPES[tensor.datatype]).reshape(tuple(tensor.shape))
    return arrays


def _sample(engine: Engine, request: oip.ModelInferRequest, inputs: dict[str, Any]) -> Request:
    parameters = request.parameters
    return engine.sample_request(
        parameters["sampler"].string_param if "sampler" in parameters else None,
        parameters["steps"].int64_param if "steps" in parameters else None,
        inputs["SEED"].ravel().tolist(),
        inputs["LABEL"].ravel().tolist() if "LABEL" in inputs else None,
    )


def main() -> None:
    """Serve until SIGTERM."""
    options = read_options("plain_grpc", max_batch=1, delay=0.0)
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)  # before there are threads, which inherit it
    server = grpc.server(ThreadPoolExecutor(CALLS_AT_ONCE), options=[("grpc.so_reuseport", 0)])
    rpc.add_GRPCInferenceServiceServicer_to_server(
        PlainService(load_engines(options.repository, options.threads)), server
    )
    server.add_insecure_port(f"{HOST}:{options.port}")
    server.start()
    signal.sigwait(ENDS)
    server.stop(grace=1.0).wait()


if __name__ == "__main__":
    main()
