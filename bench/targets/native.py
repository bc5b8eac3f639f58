"""A fewstep server by its own API, fewstep.v1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc
import grpc.aio
import numpy as np

from protos import fewstep_pb2 as pb
from protos import fewstep_pb2_grpc as rpc
from server.client import ModelSummary
from server.client.messages import sample_request, score_request, summary_of

from ..mix import Call, Kind, MixError, resolve
from .grpc_channel import connect, refused
from .target import BAD_ANSWER, CONNECT_TIMEOUT, Answer, CallFailed


class _Message(NamedTuple):
    """call: SAMPLE or SCORE. data: the request in bytes. rows: that the answer must hold."""

    call: Call
    data: bytes
    rows: int


class NativeTarget:
    """A fewstep server. address: HOST:PORT. connect_timeout: seconds that it has to answer for the first time."""

    def __init__(self, address: str, *, connect_timeout: float = CONNECT_TIMEOUT) -> None:
        self.name = "fewstep.v1"
        self.about: Mapping[str, str] = {}
        self.address = address
        self._connect_timeout = connect_timeout
        self._channel: grpc.aio.Channel
        self._catalogue: rpc.ModelsStub
        self._models: tuple[ModelSummary, ...] = ()
        self._described: dict[str, pb.DescribeModelResponse] = {}

    async def __aenter__(self) -> Self:
        self._channel = await connect(self.address, self._connect_timeout)
        self._catalogue = catalogue = rpc.ModelsStub(self._channel)
        try:
            listed = await catalogue.ListModels(pb.ListModelsRequest(), timeout=self._connect_timeout)
            status = await catalogue.GetServerStatus(pb.GetServerStatusRequest(), timeout=self._connect_timeout)
            self._models = tuple(summary_of(model) for model in listed.models)
            for model in self._models:
                await self._describe(model.name)
        except grpc.aio.AioRpcError as error:
            await self._channel.close(None)
            raise refused(self.address, "is no fewstep server, or not ready", error) from error
        self.about = {"version": status.version, "engine": status.engine}
        # Requests travel as the bytes that they are made into before the clock starts.
        self._sample = self._channel.unary_unary("/fewstep.v1.Sampler/Sample", None, pb.SampleResponse.FromString)
        self._score = self._channel.unary_unary("/fewstep.v1.Scorer/Score", None, pb.ScoreResponse.FromString)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close(None)

    async def prepare(self, kinds: Sequence[Kind]) -> tuple[Kind, ...]:
        for kind in kinds:
            if kind.call is Call.INFER:
                raise MixError(
                    f"{kind.name!r}: fewstep.v1 draws samples and scores images; infer is for --protocol oip"
                )
        chosen = resolve(kinds, self._models, lambda name: self._described[name].accepted_steps)
        for kind in chosen:
            try:
                await self._describe(kind.model)
            except grpc.aio.AioRpcError as error:
                raise MixError(f"{kind.name!r}: {error.details()}") from error
        return chosen

    async def _describe(self, model: str) -> None:
        if model not in self._described:
            request = pb.DescribeModelRequest(model=model)
            self._described[model] = await self._catalogue.DescribeModel(request, timeout=self._connect_timeout)

    def message(self, kind: Kind, seed: int) -> _Message:
        options: dict[str, Any] = dict(kind.options)
        if kind.call is Call.SAMPLE:
            sample = sample_request(kind.model, {"sampler": kind.sampler, "seed": seed, **options})  # type: ignore[typeddict-item]
            return _Message(kind.call, sample.SerializeToString(), kind.rows)
        model = self._described[kind.model]
        # Uniform noise: the content of an image costs the server nothing.
        noise = np.random.Generator(np.random.PCG64(seed))
        images = noise.uniform(model.low, model.high, size=(options.pop("images", 1), *model.image_shape))
        score = score_request(kind.model, images, seed=seed, **options)
        return _Message(kind.call, score.SerializeToString(), kind.rows)

    async def call(self, message: _Message, within: float) -> Answer:
        try:
            if message.call is Call.SAMPLE:
                response = await self._sample(message.data, timeout=within)
                rows = response.images.shape[0] if response.images.shape else 0
            else:
                response = await self._score(message.data, timeout=within)
                rows = len(response.scores[0].energy) if response.scores else 0
        except grpc.aio.AioRpcError as error:
            raise CallFailed(error.code().name) from error
        if rows != message.rows:
            raise CallFailed(BAD_ANSWER)
        timing = response.timing
        return Answer(
            *(timing.queue_seconds, timing.compute_seconds, timing.network_seconds, timing.encode_seconds),
            *(timing.total_seconds, timing.mean_batch_rows, rows),
        )
