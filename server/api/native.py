"""fewstep.v1: the native API. Each method checks its request, makes a job, and words the answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial
from time import perf_counter

import msgspec
import numpy as np

from protos import fewstep_pb2 as pb

from .. import __version__
from ..config import Config
from ..errors import STATUS, InvalidArgument, ServerError
from ..loop.engines import Engines
from ..observability.metrics import Metrics
from ..repository import Model, Repository
from ..types import Job, Row
from .calls import Context, PendingJob, PreviewedJob, answer, message_of
from .mailbox import Mailbox
from .streams import in_order
from .validate import (
    check_false_alarm_rate,
    check_labels,
    check_priority,
    check_seed,
    compile_refine_ahead,
    compile_sample_ahead,
    refine_plan,
    sample_plan,
    score_plan,
)
from .wire import Floats, check_encoding, decode_images, encode_images

# A gRPC call without a deadline reports centuries; beyond this there is none.
NO_DEADLINE_SECONDS = 1e8


class Service:
    """What the three services share: the models, the engines, and how a job is made and awaited.

    Made within the event loop that answers the calls.
    """

    def __init__(self, repository: Repository, engines: Engines, metrics: Metrics, config: Config) -> None:
        self.repository = repository
        self.engines = engines
        self.metrics = metrics
        self.config = config
        self.mailbox = Mailbox(asyncio.get_running_loop())

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self.engines.alive and self.engines.open

    def job(self, model: Model, priority: int, pending: PendingJob, deadline: float | None) -> Job:
        """A job without rows."""
        return Job(model.key, pending.on_done, priority=priority, deadline=deadline, arrived=perf_counter())

    def timing(self, job: Job, done: float) -> pb.Timing:
        """Where a job's time went. done: when its result was there to be encoded, on the clock of `perf_counter`."""
        self.metrics.observe_job(job)
        started, now = job.arrived if job.started is None else job.started, perf_counter()
        return pb.Timing(
            queue_seconds=started - job.arrived,
            compute_seconds=job.compute_seconds,
            total_seconds=now - job.arrived,
            steps=job.batches,
            mean_batch_rows=job.batch_rows / max(1, job.batches),
            network_seconds=job.network_seconds,
            encode_seconds=now - done,
        )


def deadline_of(context: Context) -> float | None:
    """When the call's time is up, on the clock of `perf_counter`; None where it has all the time."""
    left = context.time_remaining()
    return perf_counter() + left if left is not None and left < NO_DEADLINE_SECONDS else None


def energy_factor(model: Model) -> float:
    """What a network's energy is multiplied by to give the U that callers see."""
    energy = model.card.energy
    return energy.sign * energy.scale if energy is not None else 1.0


class Sampler(Service):
    """`fewstep.v1.Sampler`."""

    async def Sample(self, request: pb.SampleRequest, context: Context) -> pb.SampleResponse:
        pending = PendingJob(self.engines, self.mailbox)
        call = await self._prepare(request, context, pending)
        await pending.done(call.job)
        return self._samples(call)

    async def SampleStream(self, request: pb.SampleRequest, context: Context) -> AsyncIterator[pb.SampleEvent]:
        pending = PreviewedJob(self.engines, self.mailbox)
        call = await self._prepare(request, context, pending)
        async with aclosing(self._previews(call, pending)) as previews:
            async for preview in previews:
                yield pb.SampleEvent(preview=preview)
        yield pb.SampleEvent(result=self._samples(call))

    async def Refine(self, request: pb.RefineRequest, context: Context) -> pb.RefineResponse:
        pending = PendingJob(self.engines, self.mailbox)
        call = await self._prepare_refinement(request, context, pending)
        await pending.done(call.job)
        return self._refined(call)

    async def RefineStream(self, request: pb.RefineRequest, context: Context) -> AsyncIterator[pb.RefineEvent]:
        pending = PreviewedJob(self.engines, self.mailbox)
        call = await self._prepare_refinement(request, context, pending)
        async with aclosing(self._previews(call, pending)) as previews:
            async for preview in previews:
                yield pb.RefineEvent(preview=preview)
        yield pb.RefineEvent(result=self._refined(call))

    async def _prepare(self, request: pb.SampleRequest, context: Context, pending: PendingJob) -> _ImageCall:
        model = self.repository.find(request.model, request.version)
        encoding = check_encoding(request.encoding, model.card.image)
        await compile_sample_ahead(model, request)
        plan = sample_plan(model, request, self.config.limits.max_rows_per_request)
        job = self.job(model, check_priority(request), pending, deadline_of(context))
        seed = check_seed(request)
        job.rows = [Row(job, seed, i, plan.program, label) for i, label in enumerate(plan.labels)]
        job.row_bytes = model.sizes.row_bytes(plan.program)
        return _ImageCall(model, job, encoding, plan.sampler)

    async def _prepare_refinement(self, request: pb.RefineRequest, context: Context, pending: PendingJob) -> _ImageCall:
        model = self.repository.find(request.model, request.version)
        encoding = check_encoding(request.encoding, model.card.image)
        await compile_refine_ahead(model, request)
        plan = refine_plan(model, request)
        images = decode_images(request.images, model.card.image, self.config.limits.max_rows_per_request)
        labels = check_labels(model.card, (), len(images), "labels")
        job = self.job(model, check_priority(request), pending, deadline_of(context))
        seed = check_seed(request)
        flat: Floats = images.reshape(len(images), -1)
        job.rows = [Row(job, seed, i, plan.program, labels[i], image) for i, image in enumerate(flat)]
        job.row_bytes = model.sizes.row_bytes(plan.program)
        return _ImageCall(model, job, encoding, plan.method)

    async def _previews(self, call: _ImageCall, pending: PreviewedJob) -> AsyncGenerator[pb.Preview, None]:
        """The messages of a job's steps; returns when it is done."""
        image, steps, factor = call.model.card.image, len(call.job.rows[0].program.lines), energy_factor(call.model)
        async with aclosing(pending.previews(call.job)) as steps_taken:
            async for taken in steps_taken:
                preview = pb.Preview(step=taken.step, steps=steps)
                if taken.image is not None:
                    preview.image.CopyFrom(encode_images(taken.image.reshape(1, *image.shape), image, call.encoding))
                if taken.energy is not None:
                    preview.energy = factor * taken.energy
                if taken.gradient_norm is not None:
                    preview.gradient_norm = abs(factor) * taken.gradient_norm
                yield preview

    def _images(self, call: _ImageCall) -> pb.Images:
        states = np.array([row.state for row in call.job.rows]).reshape(-1, *call.model.card.image.shape)
        return encode_images(states, call.model.card.image, call.encoding)

    def _samples(self, call: _ImageCall) -> pb.SampleResponse:
        done, program = perf_counter(), call.job.rows[0].program
        return pb.SampleResponse(
            model=call.model.card.name,
            version=call.model.key.version,
            images=self._images(call),
            seed=call.job.rows[0].seed,
            sampler=call.method,
            steps=program.steps,
            nfe=program.nfe,
            gradient_passes=program.gradient_passes,
            timing=self.timing(call.job, done),
        )

    def _refined(self, call: _ImageCall) -> pb.RefineResponse:
        done, rows, factor = perf_counter(), call.job.rows, energy_factor(call.model)
        program = rows[0].program
        scored = bool(rows[0].scores)
        return pb.RefineResponse(
            model=call.model.card.name,
            version=call.model.key.version,
            images=self._images(call),
            energy_before=[factor * row.scores[0] for row in rows] if scored else [],
            energy_after=[factor * row.scores[-1] for row in rows] if scored else [],
            seed=rows[0].seed,
            method=call.method,
            steps=program.steps,
            nfe=program.nfe,
            gradient_passes=program.gradient_passes,
            timing=self.timing(call.job, done),
        )


class _ImageCall(msgspec.Struct, frozen=True):
    """A call that ends in images; method: the sampler or the refiner."""

    model: Model
    job: Job
    encoding: int
    method: str


class Scorer(Service):
    """`fewstep.v1.Scorer`."""

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        model = self.repository.find(request.model, request.version)
        images = decode_images(request.images, model.card.image, self.config.limits.max_rows_per_request)
        return await self.score(model, images, request, deadline_of(context))

    async def ScoreStream(
        self, requests: AsyncIterator[pb.ScoreRequest], context: Context
    ) -> AsyncGenerator[pb.ScoreEvent, None]:
        handler = partial(self._stream_answer, context=context)
        async with aclosing(in_order(requests, handler, self.config.limits)) as events:
            async for event in events:
                yield event

    async def _stream_answer(self, request: pb.ScoreRequest, *, context: Context) -> pb.ScoreEvent:
        response = await answer("Score", partial(self.Score, context=context), request, self.metrics)
        if isinstance(response, ServerError):
            code = STATUS[type(response)].value[0]
            return pb.ScoreEvent(error=pb.RequestError(code=code, message=message_of(response)))
        return pb.ScoreEvent(result=response)

    async def score(
        self, model: Model, images: Floats, request: pb.ScoreRequest, deadline: float | None
    ) -> pb.ScoreResponse:
        """Score images that have been decoded; of the request the rest is read.

        images: (count, channels, height, width) in the model's range.

        Raises:
            ServerError: a field is wrong, or the job is refused or fails.
        """
        plans = score_plan(model, request)
        if len(images) * len(plans) > self.config.limits.max_rows_per_request:
            limit = self.config.limits.max_rows_per_request
            raise InvalidArgument("scales", f"{len(images)} images at {len(plans)} scales, at most {limit} together")
        rate = check_false_alarm_rate(model, request, [name for name, _ in plans])
        pending = PendingJob(self.engines, self.mailbox)
        job = self.job(model, check_priority(request), pending, deadline)
        seed = check_seed(request)
        flat: Floats = images.reshape(len(images), -1)
        job.rows = [Row(job, seed, i, program, image=image) for _, program in plans for i, image in enumerate(flat)]
        job.row_bytes = max(model.sizes.row_bytes(program) for _, program in plans)
        await pending.done(job)
        return self._response(model, job, [name for name, _ in plans], len(images), rate)

    def _response(self, model: Model, job: Job, scales: list[str], images: int, rate: float) -> pb.ScoreResponse:
        done = perf_counter()
        means = [sum(row.scores) / len(row.scores) for row in job.rows]
        values = np.array(means, dtype=np.float64).reshape(len(scales), images) * energy_factor(model)
        scores = [self._scores(model, name, energies, rate) for name, energies in zip(scales, values, strict=True)]
        return pb.ScoreResponse(
            model=model.key.name,
            version=model.key.version,
            scores=scores,
            false_alarm_rate=rate,
            seed=job.rows[0].seed,
            nfe=sum(row.program.nfe for row in job.rows[::images]),
            gradient_passes=sum(row.program.gradient_passes for row in job.rows[::images]),
            timing=self.timing(job, done),
        )

    def _scores(self, model: Model, scale: str, energies: np.ndarray, rate: float) -> pb.ScaleScores:
        self.metrics.observe_energies(model.key.name, scale, energies)
        calibration = model.calibrations.get(scale)
        if calibration is None:
            return pb.ScaleScores(scale=scale, energy=energies)
        return pb.ScaleScores(
            scale=scale,
            energy=energies,
            percentile=calibration.percentile(energies),
            p_value=calibration.p_value(energies),
            out_of_distribution=calibration.decision(energies, rate),
            threshold=calibration.threshold(rate),
        )


class Models(Service):
    """`fewstep.v1.Models`."""

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[_summary(model) for model in self.repository.models])

    async def DescribeModel(self, request: pb.DescribeModelRequest, context: Context) -> pb.DescribeModelResponse:
        model = self.repository.find(request.model, request.version)
        card = model.card
        sampling, energy, labels = card.sampling, card.energy, card.labels
        return pb.DescribeModelResponse(
            summary=_summary(model),
            image_shape=card.image.shape,
            low=card.image.low,
            high=card.image.high,
            labels=labels.count if labels is not None else 0,
            label_names=labels.names if labels is not None else (),
            guidance=labels is not None and labels.null is not None,
            default_steps=sampling.default_steps if sampling is not None else 0,
            accepted_steps=sampling.accepted_steps() if sampling is not None else (),
            scales=[scale.name for scale in energy.scales] if energy is not None else (),
            calibrated=bool(model.calibrations),
            manifest_json=msgspec.json.encode(model.bundle.manifest).decode(),
        )

    async def LoadModel(self, request: pb.LoadModelRequest, context: Context) -> pb.LoadModelResponse:
        model = await asyncio.to_thread(self.repository.load, request.model, request.version)
        return pb.LoadModelResponse(model=_summary(model))

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:
        model = await asyncio.to_thread(self.repository.unload, request.model, request.version)
        return pb.UnloadModelResponse(model=_summary(model))

    async def ReloadModel(self, request: pb.ReloadModelRequest, context: Context) -> pb.ReloadModelResponse:
        models = await asyncio.to_thread(self.repository.reload, request.model)
        return pb.ReloadModelResponse(models=[_summary(model) for model in models])

    async def GetServerStatus(self, request: pb.GetServerStatusRequest, context: Context) -> pb.GetServerStatusResponse:
        totals = self.engines.totals()
        return pb.GetServerStatusResponse(
            version=__version__,
            engine=self.config.engine,
            ready=self.ready,
            uptime_seconds=perf_counter() - self.engines.started,
            rows_in_flight=totals.rows_in_flight,
            requests_open=totals.requests_open,
            requests_total=totals.requests,
            batches_total=totals.batches,
            mean_batch_rows=totals.batch_rows / max(1, totals.batches),
        )


def _summary(model: Model) -> pb.ModelSummary:
    return pb.ModelSummary(
        name=model.key.name,
        version=model.key.version,
        family=model.card.family,
        description=model.card.description,
        samplers=model.samplers,
        scores=model.card.energy is not None,
        refiners=model.refiners,
    )
