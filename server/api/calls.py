"""How calls travel: handlers raise `ServerError`s and await jobs; here these become status codes and futures."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from time import perf_counter
from typing import Any, NamedTuple, NoReturn

import grpc
from google.protobuf import duration_pb2, message, message_factory
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from ..errors import STATUS, Internal, InvalidArgument, Overloaded, ServerError
from ..loop.engine import Engine
from ..metrics import Metrics
from ..types import Job, Row

log = logging.getLogger(__name__)

Context = Any  # grpc.aio.ServicerContext is generic in the stubs and adds nothing here

MAX_PENDING_PREVIEWS = 64


class Malformed(NamedTuple):
    """Stands in for a request that is not a protobuf message, so that the handler can refuse it by the table."""

    reason: str


class PendingJob:
    """A job that a coroutine waits for. The engine's thread talks to it through the event loop only."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Any] = asyncio.Queue()

    def on_done(self, job: Job, error: ServerError | None) -> None:
        self._loop.call_soon_threadsafe(self._events.put_nowait, error or job)

    def on_preview(self, row: Row) -> None:
        # The row goes on while the loop gets here: take what belongs to this step now.
        self._loop.call_soon_threadsafe(self._put_preview, (row.line + 1, row.preview))

    def _put_preview(self, preview: tuple[int, Any]) -> None:
        # A slow reader loses previews, never the result, and costs bounded memory.
        if self._events.qsize() < MAX_PENDING_PREVIEWS:
            self._events.put_nowait(preview)

    async def events(self, job: Job) -> AsyncGenerator[tuple[int, Any], None]:
        """Submit the job; yields (step, preview) and returns when the job is done.

        Leaving early, e.g. because the caller is gone, cancels the job.

        Raises:
            ServerError: the job was refused, or failed.
        """
        self._engine.submit(job)
        try:
            while True:
                event = await self._events.get()
                if isinstance(event, ServerError):
                    raise event
                if isinstance(event, Job):
                    return
                yield event
        finally:
            if not job.ended:
                self._engine.cancel(job)

    async def done(self, job: Job) -> None:
        """Submit the job and wait for its end, without previews. Raises as `events`."""
        async for _ in self.events(job):
            pass


def service_handler(service: ServiceDescriptor, servicer: object, metrics: Metrics) -> grpc.GenericRpcHandler[Any, Any]:
    """The gRPC handler of a service: each method is the servicer's coroutine (or async generator) of that name.

    Requests that do not parse reach the table too, which the generated code does not give.
    """
    methods = {}
    for method in service.methods:
        handler = getattr(servicer, method.name)
        wrap, make = (
            (_stream, grpc.unary_stream_rpc_method_handler)
            if method.server_streaming
            else (_unary, grpc.unary_unary_rpc_method_handler)
        )
        methods[method.name] = make(
            wrap(method.name, handler, metrics),
            request_deserializer=_deserializer(method),
            response_serializer=message_factory.GetMessageClass(method.output_type).SerializeToString,
        )
    return grpc.method_handlers_generic_handler(service.full_name, methods)


def _deserializer(method: MethodDescriptor) -> Callable[[bytes], message.Message | Malformed]:
    kind = message_factory.GetMessageClass(method.input_type)

    def deserialize(data: bytes) -> message.Message | Malformed:
        try:
            return kind.FromString(data)
        except message.DecodeError as error:
            return Malformed(f"not a {method.input_type.full_name}: {error}")

    return deserialize


def _unary(name: str, handler: Callable[..., Any], metrics: Metrics) -> Callable[..., Any]:
    async def call(request: Any, context: Context) -> Any:
        with _Observed(name, request, metrics) as observed:
            try:
                _check_parsed(request)
                return await handler(request, context)
            except Exception as error:
                await observed.abort(context, error)

    return call


def _stream(name: str, handler: Callable[..., Any], metrics: Metrics) -> Callable[..., Any]:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        with _Observed(name, request, metrics) as observed:
            try:
                _check_parsed(request)
                async for response in handler(request, context):
                    yield response
            except Exception as error:
                await observed.abort(context, error)

    return call


def _check_parsed(request: Any) -> None:
    if isinstance(request, Malformed):
        raise InvalidArgument("request", request.reason)


class _Observed:
    """Times one call, and ends it with a status when its handler raised."""

    def __init__(self, rpc: str, request: Any, metrics: Metrics) -> None:
        self._rpc, self._metrics = rpc, metrics
        self._model = getattr(request, "model", "")
        self._code = "OK"

    def __enter__(self) -> _Observed:
        self._started = perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        if kind is not None and issubclass(kind, (asyncio.CancelledError, GeneratorExit)):
            self._code = "CANCELLED"
        self._metrics.observe_call(self._rpc, self._model, self._code, perf_counter() - self._started)

    async def abort(self, context: Context, error: Exception) -> NoReturn:
        """End the call with the error's status; what is not a `ServerError` is a bug and is logged as one."""
        if not isinstance(error, ServerError):
            log.exception("%s failed", self._rpc)
            error = Internal(f"{self._rpc} failed: {error!r}")
        code = STATUS[type(error)]
        self._code = code.name
        status = rpc_status.to_status(_status(error, code))
        await context.abort(code, status.details, status.trailing_metadata)
        raise AssertionError("abort raises")


def _status(error: ServerError, code: grpc.StatusCode) -> status_pb2.Status:
    details: list[message.Message] = []
    if isinstance(error, InvalidArgument):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=str(error))
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, Overloaded):
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_seconds * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(AnyMessage())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code.value[0], message=str(error), details=packed)
