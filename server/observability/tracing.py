"""OpenTelemetry traces, of the extra `otel`: a span for each call, its wait in the queue, and each of its steps.

Imported only when traces are wanted. During a call nothing but plain records is made, the steps by the engine's
thread; the spans are made of them on the event loop after the answer is on its way, and sent by a thread of the SDK.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from time import perf_counter

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from .. import __version__
from ..errors import STATUS
from ..types import Job, StepRecord
from .call import Call

STOP_SECONDS = 5.0
"""How long a stop waits for the collector to take the last spans."""

PROPAGATED = ("traceparent", "tracestate")

# Of the rest it is the caller who is in error, not this span (OpenTelemetry's conventions for gRPC servers).
SERVER_FAULTS = frozenset({"INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED"})

_NUMBERS = {code.name: code.value[0] for code in STATUS.values()} | {"OK": 0}


class Tracing:
    """Where calls get their traces from."""

    def __init__(self, endpoint: str, ratio: float) -> None:
        """endpoint: an OTLP collector, http://HOST:PORT or https://HOST:PORT, spoken to in gRPC.

        ratio: the share of calls to trace, of those that come without a traceparent; one that is given decides.
        Who the server is, and how the exporter talks, may be set in OpenTelemetry's own environment variables.
        """
        who = {"service.name": "fewstep", "service.version": __version__, **OTELResourceDetector().detect().attributes}
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(ratio)), resource=Resource.create(who), shutdown_on_exit=False
        )
        self._exporter = OTLPSpanExporter(endpoint=endpoint, timeout=STOP_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("fewstep", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def start(self, rpc: str, metadata: Iterable[tuple[str, str | bytes]] | None, call: Call) -> CallTrace | None:
        """The trace of a call that begins now; None where it is not sampled. rpc: /SERVICE/METHOD."""
        carrier = {key: value for key, value in metadata or () if key in PROPAGATED and isinstance(value, str)}
        parent = self._propagator.extract(carrier, Context()) if carrier else Context()
        span = self._tracer.start_span(rpc.removeprefix("/"), parent, SpanKind.SERVER)
        if not span.is_recording():
            return None
        service, _, method = rpc.removeprefix("/").partition("/")
        span.set_attributes({"rpc.system": "grpc", "rpc.service": service, "rpc.method": method})
        return CallTrace(self._tracer, span, call)

    def stop(self) -> None:
        """Send what is left, at most `STOP_SECONDS` long."""
        self._provider.force_flush(int(STOP_SECONDS * 1000))
        self._provider.shutdown()


class CallTrace:
    """The trace of one call, or of one request of a stream. Used on the event loop."""

    def __init__(self, tracer: Tracer, span: Span, call: Call) -> None:
        self._tracer, self._span, self._call = tracer, span, call
        self._loop = asyncio.get_running_loop()
        self._steps: list[StepRecord] = []
        self._jobs: list[Job] = []
        # Spans are dated in time since the epoch, jobs and steps on the engine's clock.
        self._epoch = time.time() - perf_counter()

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def child(self, call: Call) -> CallTrace:
        """The trace of one request of this call, which is a stream."""
        return CallTrace(self._tracer, self._tracer.start_span(call.rpc, set_span_in_context(self._span)), call)

    def follow(self, job: Job) -> None:
        """Have the engine write the steps of a job down; before the job is submitted."""
        job.trace = self._steps
        self._jobs.append(job)

    def end(self, code: str, error: str, client: str) -> None:
        """The call has ended; its spans are made once its answer is on its way."""
        self._loop.call_soon(self._make_spans, code, error, client, perf_counter())

    def _make_spans(self, code: str, error: str, client: str, ended: float) -> None:
        self._span.set_attributes(
            {
                "rpc.grpc.status_code": _NUMBERS[code],
                "fewstep.request_id": self._call.request_id,
                "fewstep.model": self._call.model,
                "fewstep.client": client,
            }
        )
        if code in SERVER_FAULTS:
            self._span.set_status(Status(StatusCode.ERROR, error))
        elif error:
            self._span.set_attribute("fewstep.error", error)
        if self._jobs:
            arrived = min(job.arrived for job in self._jobs)
            started = min((job.started for job in self._jobs if job.started is not None), default=ended)
            self._span_of("queue", arrived, started, {"fewstep.rows": sum(len(job.rows) for job in self._jobs)})
        for step in self._steps:
            self._span_of("step", step.started, step.started + step.seconds, _attributes(step))
        self._span.end(self._nanoseconds(ended))

    def _span_of(self, name: str, started: float, ended: float, attributes: dict[str, str | int]) -> None:
        parent = set_span_in_context(self._span, Context())
        span = self._tracer.start_span(name, parent, attributes=attributes, start_time=self._nanoseconds(started))
        span.end(self._nanoseconds(ended))

    def _nanoseconds(self, clock: float) -> int:
        return int((self._epoch + clock) * 1e9)


def _attributes(step: StepRecord) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        "fewstep.network": step.network,
        "fewstep.update": step.kind,
        "fewstep.rows": step.rows,
        "fewstep.batch_rows": step.batch_rows,
        "fewstep.step": step.first_step,
    }
    if step.last_step != step.first_step:
        attributes["fewstep.step_of_the_foremost_row"] = step.last_step
    return attributes
