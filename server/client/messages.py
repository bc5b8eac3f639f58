"""Requests and answers between the client's values and the protobuf messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from numpy.typing import NDArray

from protos import fewstep_pb2 as pb

from .types import ModelSummary, ScaleScores, Timing

_ENCODINGS: Mapping[str, pb.Encoding] = {"raw": pb.RAW, "png": pb.PNG}


class FewstepError(Exception):
    """A call that the server refused or could not finish, or that did not reach it.

    code: the gRPC status. message: the server's words, which name the field at fault.
    retry_after: seconds after which the server expects to have room (RESOURCE_EXHAUSTED), else None.
    request_id: what the server's log and traces call this call, or "" where it did not get there.
    """

    def __init__(
        self, code: grpc.StatusCode, message: str, retry_after: float | None = None, request_id: str = ""
    ) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.retry_after = retry_after
        self.request_id = request_id


class SampleOptions(TypedDict, total=False):
    """Options of a sample request; what is left out takes the model's or the sampler's default.

    count: number of samples. steps: network steps.
    sampler: ddim, iddim, radical, custom, ancestral, gdim, vdrme, hat, latent or langevin, where the model has it.
    m: iDDIM's ensemble weight in [0, 1], one value, or one a step (eq. 11).
    form: iDDIM's form, "iterate" (eq. 11) or "accumulator" (eq. 33).
    weights: for `custom`, row i holds the i+1 weights of the predictions of steps 0..i (eq. 4).
    eta: amount of noise in [0, 1] (eq. 28), of ancestral the interpolation v of its variance.
    guidance: w >= 0 of classifier-free guidance.
    temperature: std of the prior noise; for langevin the chain's temperature.
    step_size: langevin's step size s. parameters: what one sampler alone knows, by name: a number, or several.
    spacing: "quadratic" or "linear" time grid.
    labels: one for all samples, or one a sample. seed: 0..2^64-1; without it the server draws one.
    encoding: how the images travel; "png" rounds them to 8 bits.
    priority: -10..10, higher runs first. version: the model's, 0 for the newest.
    timeout: seconds that the call may take, in place of the client's; None is the client's, `math.inf` no deadline.
    """

    count: int
    steps: int
    sampler: str
    m: float | Sequence[float]
    form: str
    weights: Sequence[Sequence[float]]
    eta: float
    guidance: float
    temperature: float
    step_size: float
    parameters: Mapping[str, float | Sequence[float]]
    spacing: str
    labels: int | Sequence[int]
    seed: int
    encoding: Literal["raw", "png"]
    priority: int
    version: int
    timeout: float | None


class RefineOptions(TypedDict, total=False):
    """Options of a refinement; what is left out takes the model's or the method's default.

    method: transition or langevin, where the model has it. steps: how many. step_size, temperature: langevin's.
    The others as in `SampleOptions`.
    """

    method: str
    steps: int
    step_size: float
    temperature: float
    parameters: Mapping[str, float | Sequence[float]]
    seed: int
    encoding: Literal["raw", "png"]
    priority: int
    version: int
    timeout: float | None


def sample_request(model: str, options: SampleOptions) -> pb.SampleRequest:
    """The message of a sample request.

    Raises:
        ValueError: an encoding other than "raw" and "png", or a value that does not fit its field; names it.
    """
    given: dict[str, Any] = dict(options)
    for name in ("m", "labels"):
        if given.get(name) is not None and np.ndim(given[name]) == 0:
            given[name] = [given[name]]
    if given.get("weights") is not None:
        given["weights"] = [pb.Weights(values=row) for row in given["weights"]]
    request = pb.SampleRequest(model=model)
    _fill(request, given)
    return request


def refine_request(model: str, images: NDArray[np.floating[Any]], options: RefineOptions) -> pb.RefineRequest:
    """The message of a refinement.

    Raises:
        ValueError: as `sample_request`, and images as in `score_request`.
    """
    request = pb.RefineRequest(model=model, images=_raw(images))
    _fill(request, dict(options))
    return request


def _fill(request: Any, given: dict[str, Any]) -> None:
    """Set the fields of a request of images; what is None stays unset."""
    given = {name: value for name, value in given.items() if name != "timeout" and value is not None}
    for name, value in given.pop("parameters", {}).items():
        try:
            request.parameters[name].values.extend(np.atleast_1d(value))
        except (ValueError, TypeError) as error:
            raise ValueError(f"parameters[{name}]: {error}") from error
    if "encoding" in given:
        if given["encoding"] not in _ENCODINGS:
            raise ValueError(f"encoding: must be one of {', '.join(_ENCODINGS)}, got {given['encoding']!r}")
        given["encoding"] = _ENCODINGS[given["encoding"]]
    for name, value in given.items():
        try:
            request.MergeFrom(type(request)(**{name: value}))
        except (ValueError, TypeError) as error:  # protobuf's own message leaves the field out
            raise ValueError(f"{name}: {error}") from error


def score_request(
    model: str,
    images: NDArray[np.floating[Any]],
    scales: str | Sequence[str] = (),
    false_alarm_rate: float | None = None,
    seed: int | None = None,
    priority: int = 0,
    version: int = 0,
) -> pb.ScoreRequest:
    """The message of a score request; arguments as in `FewstepClient.score`.

    Raises:
        ValueError: images are not floating point, or have neither 3 nor 4 dimensions.
    """
    return pb.ScoreRequest(
        model=model,
        version=version,
        images=_raw(images),
        scales=[scales] if isinstance(scales, str) else scales,
        false_alarm_rate=false_alarm_rate,
        seed=seed,
        priority=priority,
    )


def _raw(images: NDArray[np.floating[Any]]) -> pb.Images:
    images = np.asarray(images)
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"images: must be floating point, in the model's value range, got {images.dtype}")
    if images.ndim == 3:
        images = images[np.newaxis]
    if images.ndim != 4:
        raise ValueError(f"images: must be (count, channels, height, width), got shape {images.shape}")
    return pb.Images(encoding=pb.RAW, shape=images.shape, raw=images.astype("<f4").tobytes())


def failure(error: grpc.RpcError) -> FewstepError:
    """The client's form of a gRPC error; its trailing metadata hold the call's id, and maybe how long to wait."""
    if not isinstance(error, grpc.Call):
        return FewstepError(grpc.StatusCode.UNKNOWN, str(error))
    retry_after, request_id = None, ""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            retry_after = _retry_after(value)
        elif key == "x-request-id" and isinstance(value, str):
            request_id = value
    return FewstepError(error.code(), error.details() or "the server gave no reason", retry_after, request_id)


def status_of(code: int) -> grpc.StatusCode:
    """The gRPC status of a number; UNKNOWN where there is none."""
    return next((status for status in grpc.StatusCode if status.value[0] == code), grpc.StatusCode.UNKNOWN)


def _retry_after(status: bytes) -> float | None:
    try:
        for detail in status_pb2.Status.FromString(status).details:
            info = error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                return float(info.retry_delay.seconds + info.retry_delay.nanos * 1e-9)
    except DecodeError:  # the code and the message stand without it
        return None
    return None


def timing_of(timing: pb.Timing) -> Timing:
    """The client's form of the message."""
    return Timing(**{name: getattr(timing, name) for name in Timing.__dataclass_fields__})


def summary_of(model: pb.ModelSummary) -> ModelSummary:
    """The client's form of the message."""
    return ModelSummary(
        name=model.name,
        version=model.version,
        family=model.family,
        description=model.description,
        samplers=tuple(model.samplers),
        scores=model.scores,
        refiners=tuple(model.refiners),
    )


def scale_scores_of(entry: pb.ScaleScores) -> ScaleScores:
    """The client's form of the message; what the server left out for want of calibration stays empty."""
    return ScaleScores(
        scale=entry.scale,
        energy=np.array(entry.energy, dtype=np.float64),
        percentile=np.array(entry.percentile, dtype=np.float64),
        p_value=np.array(entry.p_value, dtype=np.float64),
        out_of_distribution=np.array(entry.out_of_distribution, dtype=np.bool_),
        threshold=entry.threshold if entry.HasField("threshold") else None,
    )
