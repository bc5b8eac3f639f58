"""The client: a small typed Python class; `python -m server.client` is the same on the command line.

    with FewstepClient("127.0.0.1:8001") as client:
        samples = client.sample("digits-ddpm", count=16, steps=10, sampler="iddim", m=0.6, seed=7)
        samples.images                      # (16, 1, 8, 8) float32 in [-1, 1]
        scores = client.score("digits-vdrme", samples.images)
        scores["clean"].out_of_distribution

It imports NumPy, gRPC and the protobuf messages and nothing else of the project: neither torch, nor an
engine, nor `models`. Pillow is imported only when PNG is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc
import numpy as np
from numpy.typing import NDArray

from protos import fewstep_pb2 as pb
from protos import fewstep_pb2_grpc as rpc

from .channel import Credentials, open_channel
from .deadline import seconds_of
from .messages import (
    FewstepError,
    RefineOptions,
    SampleOptions,
    failure,
    refine_request,
    sample_request,
    scale_scores_of,
    score_request,
    status_of,
    summary_of,
    timing_of,
)
from .types import (
    ModelDescription,
    ModelSummary,
    Preview,
    Refined,
    Samples,
    ScaleScores,
    Scores,
    ServerStatus,
    Timing,
)

__all__ = [
    "DEFAULT_ADDRESS",
    "FewstepClient",
    "FewstepError",
    "ModelDescription",
    "ModelSummary",
    "Preview",
    "RefineOptions",
    "Refined",
    "SampleOptions",
    "Samples",
    "ScaleScores",
    "Scores",
    "ServerStatus",
    "Timing",
]

T = TypeVar("T")
DEFAULT_ADDRESS = "127.0.0.1:8001"
LARGEST_RESPONSE = 256 * 2**20
"""Bytes: gRPC's own limit of 4 MiB holds 16,384 raw 8x8 images, or 340 of 32x32 in colour."""


class FewstepClient:
    """A connection to one server; a context manager, safe to share between threads.

    address: HOST:PORT. timeout: seconds that a call may take unless it says otherwise; it travels with
    the request as its deadline, so the server too stops working on it. None and `math.inf` wait for ever, as does
    whatever is longer than three years.
    In every call a timeout of None, or none, is the client's own; `math.inf` waits for ever there too.
    tls_ca: PEM file of the CAs that may have signed the server's certificate; tls: trust those that gRPC ships.
    certificate, key: PEM files, for a server that asks for the client's certificate. token: the bearer token.
    insecure: allow the token to travel in the clear to another machine.
    Every call raises FewstepError where the server answers with a status other than OK, and ValueError for a timeout
    that is negative or no number.

    Raises:
        ValueError: credentials that do not go together (see `open_channel`), or the timeout is negative or no number.
        OSError: a file cannot be read.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout: float | None = 60.0,
        tls: bool = False,
        tls_ca: str | PathLike[str] | None = None,
        certificate: str | PathLike[str] | None = None,
        key: str | PathLike[str] | None = None,
        token: str | None = None,
        insecure: bool = False,
    ) -> None:
        seconds_of(timeout)  # refused here already, and not by the first call
        credentials = Credentials(tls, tls_ca, certificate, key, token, insecure)
        self.address = address
        self.timeout = timeout
        self._metadata = credentials.metadata()
        self._channel = open_channel(address, [("grpc.max_receive_message_length", LARGEST_RESPONSE)], credentials)
        self._sampler = rpc.SamplerStub(self._channel)
        self._scorer = rpc.ScorerStub(self._channel)
        self._models = rpc.ModelsStub(self._channel)
        self._ranges: dict[tuple[str, int], tuple[float, float]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls still running are cancelled."""
        self._channel.close()

    def wait_until_connected(self, timeout: float | None) -> None:
        """Wait until the server accepts connections.

        Raises:
            FewstepError: with UNAVAILABLE, after `timeout` seconds without a connection.
        """
        seconds = self._seconds(timeout)
        try:
            grpc.channel_ready_future(self._channel).result(timeout=seconds)
        except grpc.FutureTimeoutError:
            message = f"no server answered at {self.address} within {seconds:g} s"
            raise FewstepError(grpc.StatusCode.UNAVAILABLE, message) from None

    def sample(self, model: str, **options: Unpack[SampleOptions]) -> Samples:
        """Draw samples from a model.

        Returns: images `(count, channels, height, width)` float32 in the model's value range, with the
        seed that was used, the network evaluations spent and where the time went.

        Raises:
            FewstepError: the server refused; names the option at fault.
        """
        request = sample_request(model, options)
        return self._samples(self._call(self._sampler.Sample, request, options.get("timeout")))

    def sample_stream(self, model: str, **options: Unpack[SampleOptions]) -> Iterator[Preview | Samples]:
        """As `sample`, step by step: a Preview of sample 0 after each step, then the Samples.

        The request is sent when the iterator is first asked; closing the iterator cancels it on the server.
        """
        yield from self._stream(self._sampler.SampleStream, sample_request(model, options), options, self._samples)

    def refine(self, model: str, images: NDArray[np.floating[Any]], **options: Unpack[RefineOptions]) -> Refined:
        """Take images some steps towards the data; their energies before and after come with them.

        images: as in `score`.

        Raises:
            ValueError: images are not floating point, or have neither 3 nor 4 dimensions.
            FewstepError: the server refused; names the option at fault.
        """
        request = refine_request(model, images, options)
        return self._refined(self._call(self._sampler.Refine, request, options.get("timeout")))

    def refine_stream(
        self, model: str, images: NDArray[np.floating[Any]], **options: Unpack[RefineOptions]
    ) -> Iterator[Preview | Refined]:
        """As `refine`, step by step: a Preview of the first image after each step, then the result."""
        request = refine_request(model, images, options)
        yield from self._stream(self._sampler.RefineStream, request, options, self._refined)

    def score(
        self,
        model: str,
        images: NDArray[np.floating[Any]],
        *,
        scales: str | Sequence[str] = (),
        false_alarm_rate: float | None = None,
        seed: int | None = None,
        priority: int = 0,
        version: int = 0,
        timeout: float | None = None,
    ) -> Scores:
        """Score images by energy: low is in-distribution, high is out-of-distribution.

        images: `(count, channels, height, width)` or one image `(channels, height, width)`, floating point,
        in the model's value range.
        scales: names of noise scales, "all" for every one; empty for the model's default.
        false_alarm_rate: share of in-distribution images that the decision may reject, in (0, 1).
        seed: keys the noise that brings an image to a noisy scale.

        Raises:
            ValueError: images are not floating point, or have neither 3 nor 4 dimensions.
            FewstepError: the server refused; names the field at fault.
        """
        request = score_request(model, images, scales, false_alarm_rate, seed, priority, version)
        return _scores(self._call(self._scorer.Score, request, timeout))

    def score_stream(
        self, model: str, batches: Iterable[NDArray[np.floating[Any]]], *, timeout: float | None = None, **options: Any
    ) -> Iterator[Scores]:
        """Score many images over one stream: batches go out while others are worked on, and answers come in order.

        batches: each as the images of `score`. options: as in `score`. timeout: of the whole stream.

        Raises:
            ValueError: as `score`. FewstepError: a batch was refused, and with it the stream is left.
        """
        wrong: list[Exception] = []

        def requests() -> Iterator[pb.ScoreRequest]:
            try:
                for images in batches:
                    yield score_request(model, images, **options)
            except Exception as error:  # gRPC's thread would keep it to itself
                wrong.append(error)
                raise

        call = self._scorer.ScoreStream(requests(), timeout=self._seconds(timeout), metadata=self._metadata)
        try:
            for event in call:
                if event.WhichOneof("event") == "error":
                    raise FewstepError(status_of(event.error.code), event.error.message)
                yield _scores(event.result)
        except grpc.RpcError as error:
            if wrong:
                raise wrong[0] from None
            raise failure(error) from error
        finally:
            call.cancel()  # has no effect on a call that has ended

    def models(self, *, timeout: float | None = None) -> tuple[ModelSummary, ...]:
        """The models that are loaded."""
        response = self._call(self._models.ListModels, pb.ListModelsRequest(), timeout)
        return tuple(summary_of(model) for model in response.models)

    def describe(self, model: str, *, version: int = 0, timeout: float | None = None) -> ModelDescription:
        """What a model takes and gives, with its manifest. version: 0 for the newest."""
        request = pb.DescribeModelRequest(model=model, version=version)
        response = self._call(self._models.DescribeModel, request, timeout)
        channels, height, width = response.image_shape
        return ModelDescription(
            summary=summary_of(response.summary),
            image_shape=(channels, height, width),
            low=response.low,
            high=response.high,
            labels=response.labels,
            label_names=tuple(response.label_names),
            guidance=response.guidance,
            default_steps=response.default_steps,
            accepted_steps=tuple(response.accepted_steps),
            scales=tuple(response.scales),
            calibrated=response.calibrated,
            manifest_json=response.manifest_json,
        )

    def status(self, *, timeout: float | None = None) -> ServerStatus:
        """How the server is doing."""
        response = self._call(self._models.GetServerStatus, pb.GetServerStatusRequest(), timeout)
        return ServerStatus(**{name: getattr(response, name) for name in ServerStatus.__dataclass_fields__})

    def _call(self, method: Any, request: Any, timeout: float | None) -> Any:
        seconds = self._seconds(timeout)
        try:
            return method(request, timeout=seconds, metadata=self._metadata)
        except grpc.RpcError as error:
            raise failure(error) from error

    def _seconds(self, timeout: float | None) -> float | None:
        """What gRPC is to be told of a call's timeout."""
        return seconds_of(self.timeout if timeout is None else timeout)

    def _stream(
        self, method: Any, request: Any, options: SampleOptions | RefineOptions, result: Callable[[Any], T]
    ) -> Iterator[Preview | T]:
        call = method(request, timeout=self._seconds(options.get("timeout")), metadata=self._metadata)
        try:
            for event in call:
                if event.WhichOneof("event") == "result":
                    yield result(event.result)
                    return
                yield self._preview(event.preview, request.model, request.version)
            raise FewstepError(grpc.StatusCode.DATA_LOSS, "the server ended the stream without a result")
        except grpc.RpcError as error:
            raise failure(error) from error
        finally:
            call.cancel()  # has no effect on a call that has ended

    def _preview(self, preview: pb.Preview, model: str, version: int) -> Preview:
        return Preview(
            step=preview.step,
            steps=preview.steps,
            image=self._images(preview.image, model, version)[0] if preview.HasField("image") else None,
            energy=preview.energy if preview.HasField("energy") else None,
            gradient_norm=preview.gradient_norm if preview.HasField("gradient_norm") else None,
        )

    def _refined(self, response: pb.RefineResponse) -> Refined:
        return Refined(
            model=response.model,
            version=response.version,
            images=self._images(response.images, response.model, response.version),
            png=tuple(response.images.png),
            energy_before=np.array(response.energy_before, dtype=np.float64),
            energy_after=np.array(response.energy_after, dtype=np.float64),
            seed=response.seed,
            method=response.method,
            steps=response.steps,
            nfe=response.nfe,
            gradient_passes=response.gradient_passes,
            timing=timing_of(response.timing),
        )

    def _samples(self, response: pb.SampleResponse) -> Samples:
        return Samples(
            model=response.model,
            version=response.version,
            images=self._images(response.images, response.model, response.version),
            png=tuple(response.images.png),
            seed=response.seed,
            sampler=response.sampler,
            steps=response.steps,
            nfe=response.nfe,
            gradient_passes=response.gradient_passes,
            timing=timing_of(response.timing),
        )

    def _images(self, images: pb.Images, model: str, version: int) -> NDArray[np.float32]:
        if images.encoding == pb.PNG:
            from .images import decode_png, from_pixels

            key = (model, version)
            if key not in self._ranges:
                described = self.describe(model, version=version)
                self._ranges[key] = (described.low, described.high)
            try:
                return from_pixels(np.stack([decode_png(file) for file in images.png]), *self._ranges[key])
            except (OSError, SyntaxError, ValueError) as error:
                message = f"the server sent {len(images.png)} images as PNG, which cannot be read: {error}"
                raise FewstepError(grpc.StatusCode.DATA_LOSS, message) from error
        wanted = 4 * math.prod(images.shape)
        if len(images.shape) != 4 or min(images.shape) < 1 or len(images.raw) != wanted:
            message = f"the server sent {len(images.raw)} bytes of images of shape {list(images.shape)}"
            raise FewstepError(grpc.StatusCode.DATA_LOSS, message)
        return np.frombuffer(images.raw, dtype="<f4").reshape(images.shape).astype(np.float32)


def _scores(response: pb.ScoreResponse) -> Scores:
    return Scores(
        model=response.model,
        version=response.version,
        scales={entry.scale: scale_scores_of(entry) for entry in response.scores},
        false_alarm_rate=response.false_alarm_rate,
        seed=response.seed,
        nfe=response.nfe,
        gradient_passes=response.gradient_passes,
        timing=timing_of(response.timing),
    )
