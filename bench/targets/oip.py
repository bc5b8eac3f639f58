"""Any server of the Open Inference Protocol over gRPC: fewstep, Triton Inference Server, KServe's runtimes and others.

Samples and scores are asked for as server/api/oip.py describes, from models with these inputs and outputs; `infer` asks
any model whose inputs have fixed shapes but for the rows, with random inputs of its metadata's shapes and datatypes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray

from protos import inference_pb2 as oip

from ..mix import Call, Kind, MixError
from .grpc_channel import connect, refused
from .target import BAD_ANSWER, CONNECT_TIMEOUT, Answer, CallFailed, TargetError

Array = NDArray[Any]
_SERVICE = "/inference.GRPCInferenceService/"
_DEFAULT_LEVEL = 11
"""Of priority, which counts down from 1 here, where fewstep.v1's counts up from -10."""
_REPORTED = (
    "queue_seconds",
    "compute_seconds",
    "network_seconds",
    "encode_seconds",
    "total_seconds",
    "mean_batch_rows",
)
"""What fewstep says of an answer among its parameters, in the order of `Answer`'s fields; other servers do not."""
_LARGEST_INTEGER = 9
"""Of random inputs: small enough to be an index of whatever the model looks up."""


def _floats(dtype: str) -> Callable[[np.random.Generator, tuple[int, ...]], Array]:
    return lambda noise, shape: noise.uniform(-1.0, 1.0, shape).astype(dtype)


def _integers(dtype: str, largest: int = _LARGEST_INTEGER) -> Callable[[np.random.Generator, tuple[int, ...]], Array]:
    return lambda noise, shape: noise.integers(largest, size=shape, endpoint=True).astype(dtype)


def _brain_floats(noise: np.random.Generator, shape: tuple[int, ...]) -> Array:
    # The upper half of a float32 is a bfloat16, rounded towards zero.
    return (noise.uniform(-1.0, 1.0, shape).astype("<f4").view("<u4") >> 16).astype("<u2")


_DRAWS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {
    "BOOL": _integers("|b1", 1),
    **{f"{sign}INT8": _integers(f"|{code}1") for sign, code in (("", "i"), ("U", "u"))},
    **{f"{s}INT{8 * size}": _integers(f"<{code}{size}") for s, code in (("", "i"), ("U", "u")) for size in (2, 4, 8)},
    "FP16": _floats("<f2"),
    "BF16": _brain_floats,
    "FP32": _floats("<f4"),
    "FP64": _floats("<f8"),
}


class _Message(NamedTuple):
    """data: a ModelInferRequest in bytes. rows: that outputs must hold; None where the model has no axis of rows."""

    data: bytes
    rows: int | None


class OipTarget:
    """A server of the Open Inference Protocol. address: HOST:PORT. connect_timeout: seconds for its first answer."""

    def __init__(self, address: str, *, connect_timeout: float = CONNECT_TIMEOUT) -> None:
        self.name = "oip"
        self.about: Mapping[str, str] = {}
        self.address = address
        self._connect_timeout = connect_timeout
        self._channel: grpc.aio.Channel
        self._metadata: dict[str, oip.ModelMetadataResponse] = {}

    async def __aenter__(self) -> Self:
        self._channel = await connect(self.address, self._connect_timeout)
        try:
            about = await self._ask("ServerMetadata", oip.ServerMetadataRequest(), oip.ServerMetadataResponse)
            ready = await self._ask("ServerReady", oip.ServerReadyRequest(), oip.ServerReadyResponse)
        except grpc.aio.AioRpcError as error:
            await self._channel.close(None)
            raise refused(self.address, "does not speak the Open Inference Protocol", error) from error
        if not ready.ready:
            await self._channel.close(None)
            raise TargetError(f"{self.address}: {about.name or 'the server'} is not ready")
        self.about = {"server": about.name, "version": about.version}
        self._infer = self._channel.unary_unary(f"{_SERVICE}ModelInfer", None, oip.ModelInferResponse.FromString)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close(None)

    async def _ask(self, method: str, request: Any, response: type[Any]) -> Any:
        stub = self._channel.unary_unary(f"{_SERVICE}{method}", type(request).SerializeToString, response.FromString)
        return await stub(request, timeout=self._connect_timeout)

    # -- what there is ----------------------------------------------------------------------------

    async def prepare(self, kinds: Sequence[Kind]) -> tuple[Kind, ...]:
        """As `Target.prepare`; without a model's name a kind goes to the only model that can serve it.

        The protocol does not say which samplers a model offers, so that among several the mix has to choose.
        """
        if not all(kind.model for kind in kinds):
            await self._list()
        chosen = []
        for kind in kinds:
            named = kind if kind.model else replace(kind, model=self._only_model(kind))
            metadata = await self._describe(named)
            if not _serves(metadata, kind.call):
                inputs = ", ".join(f"{tensor.name} {tensor.datatype}" for tensor in metadata.inputs)
                raise MixError(f"{kind.name!r}: model {named.model!r} does not serve it, whose inputs are {inputs}")
            for tensor in metadata.inputs if kind.call is Call.INFER else ():
                _shape_of(tensor, kind)
            chosen.append(named)
        return tuple(chosen)

    async def _list(self) -> None:
        """Look up all models of a server that lists them, which not all servers do."""
        try:
            index = await self._ask(
                "RepositoryIndex", oip.RepositoryIndexRequest(ready=True), oip.RepositoryIndexResponse
            )
            for name in dict.fromkeys(model.name for model in index.models if model.state in ("", "READY")):
                request = oip.ModelMetadataRequest(name=name)
                self._metadata[name] = await self._ask("ModelMetadata", request, oip.ModelMetadataResponse)
        except grpc.aio.AioRpcError as error:
            raise refused(self.address, "does not list its models, name them with model=", error) from error

    def _only_model(self, kind: Kind) -> str:
        able = [name for name, metadata in self._metadata.items() if _serves(metadata, kind.call)]
        if len(able) == 1:
            return able[0]
        if able:
            raise MixError(f"{kind.name!r}: several models may serve it, name one with model=: {', '.join(able)}")
        known = ", ".join(self._metadata) or "none"
        raise MixError(f"{kind.name!r}: no model has the inputs of a {kind.call.value}; there are: {known}")

    async def _describe(self, kind: Kind) -> oip.ModelMetadataResponse:
        if kind.model not in self._metadata:
            request = oip.ModelMetadataRequest(name=kind.model)
            try:
                found = await self._ask("ModelMetadata", request, oip.ModelMetadataResponse)
            except grpc.aio.AioRpcError as error:
                raise MixError(f"{kind.name!r}: model {kind.model!r}: {error.details()}") from error
            self._metadata[kind.model] = found
        return self._metadata[kind.model]

    # -- calls ------------------------------------------------------------------------------------

    def message(self, kind: Kind, seed: int) -> _Message:
        noise = np.random.Generator(np.random.PCG64(seed))
        request = oip.ModelInferRequest(model_name=kind.model)
        {Call.SAMPLE: _add_sample, Call.SCORE: _add_score, Call.INFER: _add_inputs}[kind.call](
            request, kind, self._metadata[kind.model], noise
        )
        batched = all(tensor.shape and tensor.shape[0] < 0 for tensor in self._metadata[kind.model].inputs)
        return _Message(request.SerializeToString(), kind.rows if batched else None)

    async def call(self, message: _Message, within: float) -> Answer:
        try:
            response = await self._infer(message.data, timeout=within)
        except grpc.aio.AioRpcError as error:
            raise CallFailed(error.code().name) from error
        outputs = response.outputs
        rows = outputs[0].shape[0] if outputs and outputs[0].shape else 0
        if not outputs or message.rows not in (None, rows):
            raise CallFailed(BAD_ANSWER)
        parameters = response.parameters
        queue, compute, network, encode, server, batch_rows = (parameters[name].double_param for name in _REPORTED)
        return Answer(queue, compute, network, encode, server, batch_rows, rows)


def _serves(metadata: oip.ModelMetadataResponse, call: Call) -> bool:
    inputs, outputs = {tensor.name for tensor in metadata.inputs}, {tensor.name for tensor in metadata.outputs}
    if call is Call.SAMPLE:
        return "SEED" in inputs and "IMAGES" in outputs
    if call is Call.SCORE:
        return "IMAGES" in inputs and "ENERGY" in outputs
    return True


def _shape_of(tensor: oip.ModelMetadataResponse.TensorMetadata, kind: Kind) -> tuple[int, ...]:
    """The shape of an input of `kind.rows` rows; the first axis is that of the rows where it is of any size.

    Raises:
        MixError: the metadata leave the shape open, or it cannot hold so many rows, or nobody can draw such a datatype.
    """
    shape = tuple(tensor.shape)
    where = f"{kind.name!r}: input {tensor.name} of model {kind.model!r}"
    if tensor.datatype not in _DRAWS:
        raise MixError(f"{where} is of datatype {tensor.datatype}, of which no random values are drawn")
    if any(size < 0 for size in shape[1:]):
        raise MixError(f"{where} has the shape {list(shape)}, which leaves more open than the rows")
    if shape and shape[0] < 0:
        return (kind.rows, *shape[1:])
    if kind.rows != (shape[0] if shape else 1) and "rows" in kind.options:
        raise MixError(f"{where} has the fixed shape {list(shape)}, so that rows={kind.rows} cannot be asked for")
    return shape


def _add(request: oip.ModelInferRequest, name: str, datatype: str, values: Array) -> None:
    request.inputs.add(name=name, datatype=datatype, shape=values.shape)
    request.raw_input_contents.append(values.tobytes())


def _add_inputs(
    request: oip.ModelInferRequest, kind: Kind, metadata: oip.ModelMetadataResponse, noise: np.random.Generator
) -> None:
    for tensor in metadata.inputs:
        _add(request, tensor.name, tensor.datatype, _DRAWS[tensor.datatype](noise, _shape_of(tensor, kind)))


def _add_sample(
    request: oip.ModelInferRequest, kind: Kind, metadata: oip.ModelMetadataResponse, noise: np.random.Generator
) -> None:
    options = {name: value for name, value in kind.options.items() if name != "count"}
    labels = options.pop("labels", ())
    _add(request, "SEED", "UINT64", noise.integers(2**63, size=(kind.rows, 1), dtype=np.uint64))
    if labels:
        every = labels * kind.rows if len(labels) == 1 else labels
        _add(request, "LABEL", "INT64", np.array(every, dtype="<i8").reshape(-1, 1))
    request.outputs.add(name="IMAGES")
    _set_parameters(request, {"sampler": kind.sampler, **options})


def _add_score(
    request: oip.ModelInferRequest, kind: Kind, metadata: oip.ModelMetadataResponse, noise: np.random.Generator
) -> None:
    options = {name: value for name, value in kind.options.items() if name != "images"}
    (images,) = (tensor for tensor in metadata.inputs if tensor.name == "IMAGES")
    # The protocol does not tell the range of the values; all models of ours take -1..1.
    _add(request, "IMAGES", "FP32", _DRAWS["FP32"](noise, _shape_of(images, kind)))
    request.outputs.add(name="ENERGY")
    _set_parameters(request, options)


def _set_parameters(request: oip.ModelInferRequest, options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if name == "priority":
            request.parameters[name].int64_param = _DEFAULT_LEVEL - value
        elif isinstance(value, tuple):  # lists are text with commas
            request.parameters[name].string_param = ",".join(map(str, value))
        elif isinstance(value, str):
            request.parameters[name].string_param = value
        elif isinstance(value, float):
            request.parameters[name].double_param = value
        else:
            request.parameters[name].int64_param = value
