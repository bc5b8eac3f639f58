"""One client that waits for each answer before it asks again, with as little of its own in the way as can be.

Used where one request is on the way at a time: for latencies on an idle server, and to see what a server computes.
"""

from __future__ import annotations

import http.client
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self
from urllib.parse import urlencode

import grpc
import msgspec
import numpy as np
import numpy.typing as npt

from protos import fewstep_pb2 as pb
from protos import inference_pb2 as oip
from server.client.messages import score_request

Floats = npt.NDArray[np.float32]
Energies = npt.NDArray[np.float64]
TIMEOUT = 60.0
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
_INFER = "/inference.GRPCInferenceService/ModelInfer"
_SAMPLE = "/fewstep.v1.Sampler/Sample"
_SCORE = "/fewstep.v1.Scorer/Score"


@dataclass(frozen=True, slots=True)
class Draw:
    """A request for samples: row i is sample 0 of `seeds[i]`."""

    model: str
    sampler: str
    steps: int
    seeds: Sequence[int]


class CallerError(Exception):
    """A call that failed; the message says how."""


class Caller(Protocol):
    """A connection to a server; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def sampling(self, draw: Draw) -> Callable[[], bytes]:
        """A function that makes this call, again and again; it returns the samples' float32 bytes.

        All that can be done before the call is done here. The function raises CallerError.
        """

    def score(self, model: str, images: Floats) -> Energies:
        """The energies of images `(rows, *shape)` at the model's first scale, `(rows,)`."""


def connect(protocol: str, address: str) -> Caller:
    """The caller for a protocol: oip, native or http."""
    callers: dict[str, Callable[[str], Caller]] = {"oip": OipCaller, "native": NativeCaller, "http": HttpCaller}
    return callers[protocol](address)


class _GrpcCaller:
    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, _OPTIONS)

    def __enter__(self) -> Self:
        grpc.channel_ready_future(self._channel).result(TIMEOUT)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()


class OipCaller(_GrpcCaller):
    """The Open Inference Protocol over gRPC."""

    def sampling(self, draw: Draw) -> Callable[[], bytes]:
        request = oip.ModelInferRequest(model_name=draw.model)
        request.inputs.add(name="SEED", datatype="UINT64", shape=(len(draw.seeds), 1))
        request.raw_input_contents.append(np.array(draw.seeds, "<u8").tobytes())
        request.outputs.add(name="IMAGES")
        request.parameters["sampler"].string_param = draw.sampler
        request.parameters["steps"].int64_param = draw.steps
        return self._asking(request)

    def score(self, model: str, images: Floats) -> Energies:
        request = oip.ModelInferRequest(model_name=f"{model}.score")
        request.inputs.add(name="IMAGES", datatype="FP32", shape=images.shape)
        request.raw_input_contents.append(images.astype("<f4").tobytes())
        request.outputs.add(name="ENERGY")
        return np.frombuffer(self._asking(request)(), "<f8")

    def _asking(self, request: oip.ModelInferRequest) -> Callable[[], bytes]:
        infer = self._channel.unary_unary(_INFER, None, oip.ModelInferResponse.FromString)
        data = request.SerializeToString()

        def ask() -> bytes:
            try:
                return bytes(infer(data, timeout=TIMEOUT).raw_output_contents[0])
            except grpc.RpcError as error:
                raise CallerError(f"{error.code().name}: {error.details()}") from error

        return ask


class NativeCaller(_GrpcCaller):
    """fewstep.v1; one seed a request, whose samples 0, 1.. it draws."""

    def sampling(self, draw: Draw) -> Callable[[], bytes]:
        (seed,) = draw.seeds
        sample = self._channel.unary_unary(_SAMPLE, None, pb.SampleResponse.FromString)
        data = pb.SampleRequest(
            model=draw.model, sampler=draw.sampler, steps=draw.steps, seed=seed, count=1
        ).SerializeToString()

        def ask() -> bytes:
            try:
                return bytes(sample(data, timeout=TIMEOUT).images.raw)
            except grpc.RpcError as error:
                raise CallerError(f"{error.code().name}: {error.details()}") from error

        return ask

    def score(self, model: str, images: Floats) -> Energies:
        score = self._channel.unary_unary(_SCORE, None, pb.ScoreResponse.FromString)
        try:
            answer = score(score_request(model, images).SerializeToString(), timeout=TIMEOUT)
        except grpc.RpcError as error:
            raise CallerError(f"{error.code().name}: {error.details()}") from error
        return np.array(answer.scores[0].energy)


class HttpCaller:
    """The HTTP contract of `bench.peers.serving`, over one connection that is kept."""

    def __init__(self, address: str) -> None:
        self._connection = http.client.HTTPConnection(address, timeout=TIMEOUT)

    def __enter__(self) -> Self:
        return self  # the first request makes the connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def sampling(self, draw: Draw) -> Callable[[], bytes]:
        call = {"model": draw.model, "sampler": draw.sampler, "steps": draw.steps}
        body = msgspec.json.encode({**call, "seeds": list(draw.seeds), "labels": None})
        return lambda: self._post("/sample", body, "application/json")

    def score(self, model: str, images: Floats) -> Energies:
        query = urlencode({"model": model, "rows": len(images)})
        body = images.astype("<f4").tobytes()
        return np.frombuffer(self._post(f"/score?{query}", body, "application/octet-stream"), "<f8")

    def _post(self, path: str, body: bytes, content_type: str) -> bytes:
        try:
            self._connection.request("POST", path, body, {"Content-Type": content_type})
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()  # and is opened again by the next request
            raise CallerError(f"{type(error).__name__}: {error}") from error
        if response.status != 200:
            raise CallerError(f"HTTP {response.status}: {content[:200].decode(errors='replace')}")
        return content
