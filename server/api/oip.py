"""inference.GRPCInferenceService: the Open Inference Protocol and Triton's stream, as a second face of the same core.

What a model is here:

- A model that draws samples has the inputs SEED, UINT64 [n, 1], and, where it takes labels, LABEL, INT64 [n, 1],
  optional; the output is IMAGES, FP32 [n, channels, height, width] in the model's range. Row i is sample 0 of
  SEED[i]: what `fewstep.v1.Sampler.Sample` returns for that seed and label and a count of 1.
- A model that scores has the input IMAGES, FP32 [n, channels, height, width], and the output ENERGY, FP64
  [n, scales], low for in-distribution; where its scales are calibrated also P_VALUE and PERCENTILE, FP64 [n, scales],
  and OUT_OF_DISTRIBUTION, BOOL [n, scales].
- A model that does both appears as a sampler under its own name, and as a scorer under `NAME.score`.

Everything else is a request parameter, with the meaning it has in fewstep.v1:

- sampling: steps, sampler, spacing, m, form, weights, eta, guidance, temperature, step_size, and a sampler's own
  options (fewstep.v1's `parameters`), each under its name;
- scoring: scales, false_alarm_rate, seed.

Numbers may come as text; the lists m and scales are text with commas, the rows of weights have semicolons between.
Two parameters are Triton's own, with Triton's meaning: `priority` (1 runs first, 21 last, 0 or 11 is the default:
fewstep.v1's 10..-10) and `timeout` (microseconds; the call's deadline holds too).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from models.samplers import SAMPLERS
from protos import fewstep_pb2 as pb
from protos import inference_pb2 as oip

from .. import __version__
from ..config import Config
from ..errors import STATUS, FailedPrecondition, InvalidArgument, ModelGone, NotFound, ServerError
from ..loop.engines import Engines
from ..observability.metrics import Metrics
from ..repository import Repository
from ..types import Row
from .calls import Context, PendingJob, answer, message_of
from .native import Scorer, Service, deadline_of
from .oip_models import Face, Faces
from .oip_wire import (
    DATATYPES,
    Array,
    Reader,
    flag,
    integer,
    names,
    number,
    numbers,
    read_inputs,
    read_parameters,
    requested_outputs,
    rows_of_numbers,
    text,
    write_outputs,
    write_parameters,
)
from .streams import in_order
from .validate import MAX_PRIORITY, compile_sample_ahead, sample_plan, score_plan
from .wire import check_values

PLATFORM = "fewstep"
EXTENSIONS = ("model_configuration", "statistics", "schedule_policy", "parameters", "binary_tensor_data")
DEFAULT_LEVEL = MAX_PRIORITY + 1  # Triton's priority levels count down from 1; the middle one is fewstep's 0

# Clients of a stream ask with it that the last response to a request be marked, which here every response is.
_MARK_FINAL = "triton_enable_empty_final_response"
_INT64 = integer(-(2**63), 2**63 - 1)
_COMMON: dict[str, Reader] = {
    "priority": integer(0, 2 * MAX_PRIORITY + 1),
    "timeout": integer(0, 2**63 - 1),
    _MARK_FINAL: flag,
}
_SAMPLING: dict[str, Reader] = {
    "steps": _INT64,
    "sampler": text,
    "spacing": text,
    "m": numbers,
    "form": text,
    "weights": rows_of_numbers,
    "eta": number,
    "guidance": number,
    "temperature": number,
    "step_size": number,
}
_OWN: dict[str, Reader] = {
    name: numbers for sampler in SAMPLERS.values() for name in sampler.options if name not in _SAMPLING
}
"""Options that one sampler alone knows."""
_SCORING: dict[str, Reader] = {"scales": names, "false_alarm_rate": number, "seed": integer(0, 2**64 - 1)}
_OF_SAMPLES, _OF_SCORES = {**_SAMPLING, **_OWN, **_COMMON}, {**_SCORING, **_COMMON}


_TIMES = ("queue_seconds", "compute_seconds", "network_seconds", "encode_seconds", "total_seconds", "mean_batch_rows")
"""Of a request's timing, what its response's parameters tell."""


class Answer(NamedTuple):
    """What an inference came to.

    outputs: arrays by name. chosen: values for the response's parameters. timing: the job's.
    submitted, done: when the core got the work and gave it back, on the clock of `perf_counter`.
    """

    outputs: dict[str, Array]
    chosen: dict[str, str | float]
    timing: pb.Timing
    submitted: float
    done: float


class GRPCInferenceService(Service):
    """`inference.GRPCInferenceService`."""

    def __init__(self, repository: Repository, engines: Engines, metrics: Metrics, config: Config) -> None:
        super().__init__(repository, engines, metrics, config)
        self._scorer = Scorer(repository, engines, metrics, config)
        self._faces = Faces(repository)
        self._statistics: dict[tuple[str, int], oip.ModelStatistics] = {}

    # -- what there is ----------------------------------------------------------------------------

    async def ServerLive(self, request: oip.ServerLiveRequest, context: Context) -> oip.ServerLiveResponse:
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: oip.ServerReadyRequest, context: Context) -> oip.ServerReadyResponse:
        return oip.ServerReadyResponse(ready=self.ready)

    async def ModelReady(self, request: oip.ModelReadyRequest, context: Context) -> oip.ModelReadyResponse:
        try:
            self._faces.find(request.name, request.version)
        except NotFound:
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=self.ready)

    async def ServerMetadata(self, request: oip.ServerMetadataRequest, context: Context) -> oip.ServerMetadataResponse:
        return oip.ServerMetadataResponse(name=PLATFORM, version=__version__, extensions=EXTENSIONS)

    async def ModelMetadata(self, request: oip.ModelMetadataRequest, context: Context) -> oip.ModelMetadataResponse:
        face = self._faces.find(request.name, request.version)
        kind = oip.ModelMetadataResponse.TensorMetadata
        return oip.ModelMetadataResponse(
            name=face.name,
            versions=[str(other.version) for other in self._faces.all() if other.name == face.name],
            platform=PLATFORM,
            inputs=[kind(name=t.name, datatype=t.datatype, shape=(-1, *t.shape)) for t in face.inputs],
            outputs=[kind(name=t.name, datatype=t.datatype, shape=(-1, *t.shape)) for t in face.outputs],
        )

    async def ModelConfig(self, request: oip.ModelConfigRequest, context: Context) -> oip.ModelConfigResponse:
        face = self._faces.find(request.name, request.version)
        inputs = [
            oip.ModelInput(name=t.name, data_type=DATATYPES[t.datatype].enum, dims=t.shape, optional=t.optional)
            for t in face.inputs
        ]
        outputs = [
            oip.ModelOutput(name=t.name, data_type=DATATYPES[t.datatype].enum, dims=t.shape) for t in face.outputs
        ]
        levels = oip.ModelDynamicBatching(priority_levels=2 * MAX_PRIORITY + 1, default_priority_level=DEFAULT_LEVEL)
        return oip.ModelConfigResponse(
            config=oip.ModelConfig(
                name=face.name,
                platform=PLATFORM,
                backend=PLATFORM,
                max_batch_size=self.config.limits.max_rows_per_request,
                input=inputs,
                output=outputs,
                dynamic_batching=levels,
            )
        )

    async def RepositoryIndex(
        self, request: oip.RepositoryIndexRequest, context: Context
    ) -> oip.RepositoryIndexResponse:
        kind = oip.RepositoryIndexResponse.ModelIndex
        models = [kind(name=face.name, version=str(face.version), state="READY") for face in self._faces.all()]
        return oip.RepositoryIndexResponse(models=models)

    async def ModelStatistics(
        self, request: oip.ModelStatisticsRequest, context: Context
    ) -> oip.ModelStatisticsResponse:
        """Statistics of this protocol's requests alone; those of all requests are on the metrics page."""
        faces = [face for face in self._faces.all() if request.name in ("", face.name)]
        if request.name:
            found = self._faces.find(request.name, request.version)
            faces = [found] if request.version else faces
        return oip.ModelStatisticsResponse(model_stats=[self._statistics_of(face) for face in faces])

    async def RepositoryModelLoad(
        self, request: oip.RepositoryModelLoadRequest, context: Context
    ) -> oip.RepositoryModelLoadResponse:
        _check_repository(request, accepted=())
        await asyncio.to_thread(self.repository.reload, request.model_name)
        return oip.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: oip.RepositoryModelUnloadRequest, context: Context
    ) -> oip.RepositoryModelUnloadResponse:
        _check_repository(request, accepted=("unload_dependents",))
        await asyncio.to_thread(self.repository.unload_all, request.model_name)
        return oip.RepositoryModelUnloadResponse()

    # -- inference --------------------------------------------------------------------------------

    async def ModelInfer(self, request: oip.ModelInferRequest, context: Context) -> oip.ModelInferResponse:
        return await self._infer(request, deadline_of(context))

    async def ModelStreamInfer(
        self, requests: AsyncIterator[oip.ModelInferRequest], context: Context
    ) -> AsyncGenerator[oip.ModelStreamInferResponse, None]:
        """A request that fails is answered with its error, and the stream goes on."""
        handler = partial(self._stream_answer, deadline=deadline_of(context))
        async with aclosing(in_order(requests, handler, self.config.limits)) as responses:
            async for response in responses:
                yield response

    async def _stream_answer(
        self, request: oip.ModelInferRequest, *, deadline: float | None
    ) -> oip.ModelStreamInferResponse:
        handler = partial(self._infer, deadline=deadline)
        response = await answer("ModelInfer", handler, request, self.metrics)
        if isinstance(response, ServerError):
            # A stream's message has no room for a status code.
            message = f"{STATUS[type(response)].name}: {message_of(response)}"
            return oip.ModelStreamInferResponse(
                error_message=message, infer_response=oip.ModelInferResponse(id=request.id)
            )
        if request.parameters.get(_MARK_FINAL, oip.InferParameter()).bool_param:
            response.parameters["triton_final_response"].bool_param = True
        return oip.ModelStreamInferResponse(infer_response=response)

    async def _infer(self, request: oip.ModelInferRequest, deadline: float | None) -> oip.ModelInferResponse:
        started = perf_counter()
        face = self._faces.find(request.model_name, request.model_version)
        statistics = self._statistics_of(face)
        infer = self._score if face.scores else self._sample
        try:
            result = await infer(face, request, deadline)
        except ModelGone:
            raise  # and be called again
        except ServerError:
            _add(statistics.inference_stats.fail, perf_counter() - started)
            raise
        version = str(face.version)
        response = oip.ModelInferResponse(model_name=face.name, model_version=version, id=request.id)
        began = perf_counter()
        write_outputs(response, face.outputs, result.outputs)
        written = perf_counter() - began
        result.timing.encode_seconds += written
        result.timing.total_seconds += written
        times = {name: getattr(result.timing, name) for name in _TIMES}
        write_parameters(response, {**result.chosen, **times})
        _count(statistics, result, response.outputs[0].shape[0], started)
        return response

    async def _sample(self, face: Face, request: oip.ModelInferRequest, deadline: float | None) -> Answer:
        """One job, whose rows are each the sample 0 of a seed of their own."""
        model, limit = face.model, self.config.limits.max_rows_per_request
        parameters = read_parameters(request, _OF_SAMPLES)
        requested_outputs(request, face.outputs)  # there is but one
        inputs = read_inputs(request, face.inputs, limit)
        seeds = _seeds(inputs["SEED"])
        labels = inputs["LABEL"].ravel().tolist() if "LABEL" in inputs else []
        native = _sample_request(parameters, len(seeds), labels)
        await compile_sample_ahead(model, native)
        plan = sample_plan(model, native, limit, "LABEL")
        priority, deadline = _scheduling(parameters, deadline)
        pending = PendingJob(self.engines, self.mailbox)
        job = self.job(model, priority, pending, deadline)
        job.rows = [Row(job, seed, 0, plan.program, label) for seed, label in zip(seeds, plan.labels, strict=True)]
        job.row_bytes = model.sizes.row_bytes(plan.program)
        submitted = perf_counter()
        await pending.done(job)
        done = perf_counter()
        images = np.array([row.state for row in job.rows]).reshape(-1, *model.card.image.shape)
        chosen: dict[str, str | float] = {
            "sampler": plan.sampler,
            "steps": plan.program.steps,
            "nfe": plan.program.nfe,
            "gradient_passes": plan.program.gradient_passes,
        }
        return Answer({"IMAGES": images}, chosen, self.timing(job, done), submitted, done)

    async def _score(self, face: Face, request: oip.ModelInferRequest, deadline: float | None) -> Answer:
        model = face.model
        parameters = read_parameters(request, _OF_SCORES)
        asked = requested_outputs(request, face.outputs)
        inputs = read_inputs(request, face.inputs, self.config.limits.max_rows_per_request)
        images = inputs["IMAGES"].astype(np.float32, copy=False)
        check_values(images, model.card.image, "IMAGES")
        priority, deadline = _scheduling(parameters, deadline)
        native = pb.ScoreRequest(priority=priority, **{name: parameters[name] for name in _SCORING.keys() & parameters})
        scales = [name for name, _ in score_plan(model, native)]
        outputs = asked or tuple(tensor.name for tensor in face.outputs)
        uncalibrated = [name for name in scales if name not in model.calibrations]
        if uncalibrated:
            if set(asked) - {"ENERGY"}:
                raise FailedPrecondition(
                    f"outputs: no calibration for scale {', '.join(uncalibrated)} of {model.key.name}, only ENERGY"
                )
            outputs = ("ENERGY",)
        submitted = perf_counter()
        response = await self._scorer.score(model, images, native, deadline)
        done = perf_counter()
        chosen: dict[str, str | float] = {
            "scales": ",".join(scales),
            "false_alarm_rate": response.false_alarm_rate,
            "seed": response.seed,
            "nfe": response.nfe,
        }
        arrays = {
            name: np.stack([np.array(getattr(score, name.lower())) for score in response.scores], axis=1)
            for name in outputs
        }
        return Answer(arrays, chosen, response.timing, submitted, done)

    def _statistics_of(self, face: Face) -> oip.ModelStatistics:
        key = face.name, face.version
        if key not in self._statistics:
            self._statistics[key] = oip.ModelStatistics(name=face.name, version=str(face.version))
        return self._statistics[key]


def _check_repository(
    request: oip.RepositoryModelLoadRequest | oip.RepositoryModelUnloadRequest, accepted: tuple[str, ...]
) -> None:
    if request.repository_name:
        raise NotFound(f"repository_name: there is one repository, without a name; got {request.repository_name!r}")
    unknown = sorted(set(request.parameters) - set(accepted))
    if unknown:
        raise InvalidArgument("parameters", f"models are loaded as they are on disk; cannot take {', '.join(unknown)}")


def _seeds(seeds: Array) -> list[int]:
    values: list[int] = seeds.ravel().tolist()
    if min(values) < 0:
        raise InvalidArgument("SEED", f"must not be negative, got {min(values)}")
    return values


def _sample_request(parameters: Mapping[str, Any], count: int, labels: list[int]) -> pb.SampleRequest:
    """The native request for the same thing, so that one set of checks serves both APIs."""
    options = {name: parameters[name] for name in _SAMPLING.keys() & parameters}
    weights = [pb.Weights(values=row) for row in options.pop("weights", ())]
    own = {name: pb.Numbers(values=parameters[name]) for name in _OWN.keys() & parameters}
    return pb.SampleRequest(count=count, labels=labels, weights=weights, parameters=own, **options)


def _scheduling(parameters: Mapping[str, Any], deadline: float | None) -> tuple[int, float | None]:
    """Priority as the core counts it, and the deadline: the call's, or the request's own where that is earlier."""
    priority = DEFAULT_LEVEL - (parameters.get("priority", 0) or DEFAULT_LEVEL)
    timeout = parameters.get("timeout", 0)
    if timeout:
        own = perf_counter() + timeout * 1e-6
        deadline = own if deadline is None else min(own, deadline)
    return priority, deadline


def _count(statistics: oip.ModelStatistics, result: Answer, rows: int, started: float) -> None:
    now, stats, timing = perf_counter(), statistics.inference_stats, result.timing
    _add(stats.success, now - started)
    _add(stats.queue, timing.queue_seconds)
    _add(stats.compute_input, result.submitted - started)
    _add(stats.compute_infer, timing.compute_seconds)
    _add(stats.compute_output, now - result.done)
    statistics.inference_count += rows
    statistics.execution_count += timing.steps
    statistics.last_inference = time.time_ns() // 1_000_000


def _add(duration: oip.StatisticDuration, seconds: float) -> None:
    duration.count += 1
    duration.ns += max(0, round(seconds * 1e9))
