"""How calls travel: handlers raise `ServerError`s and await jobs; here these become status codes and futures."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import grpc
from google.protobuf import duration_pb2, message, message_factory
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from ..access.clients import CLIENT, UNLIMITED
from ..access.gate import Gate
from ..errors import STATUS, InvalidArgument, ModelGone, Overloaded, ServerError
from ..loop.engines import Engines
from ..observability.call import CALL, REQUEST_ID, Call
from ..observability.metrics import Metrics
from ..types import Job, Row
from .mailbox import Mailbox
from .observed import Observed
from .streams import STREAM

if TYPE_CHECKING:
    from ..observability.tracing import Tracing

log = logging.getLogger(__name__)

Context = Any  # grpc.aio.ServicerContext is generic in the stubs and adds nothing here

MAX_PENDING_PREVIEWS = 64
# Clients take 8 KiB of trailers by default. The text travels percent-encoded (up to 3 bytes a byte) and in the details.
MAX_MESSAGE_BYTES = 1000


class Malformed(NamedTuple):
    """Stands in for a request that is not a protobuf message, so that the handler can refuse it by the table."""

    reason: str


class StepPreview(NamedTuple):
    """What a step, counted from 1, made of sample 0: the image so far `(elements,)`, and what its gradient told."""

    step: int
    image: Any
    energy: float | None
    gradient_norm: float | None


class PendingJob:
    """What a coroutine waits for. The engine's thread talks to it through the event loop only."""

    def __init__(self, engines: Engines, mailbox: Mailbox) -> None:
        self._engines = engines
        self._mailbox = mailbox
        self._ended: asyncio.Future[ServerError | None] = asyncio.get_running_loop().create_future()

    def on_done(self, job: Job, error: ServerError | None) -> None:
        self._mailbox.put(self._end, error)

    def _end(self, error: ServerError | None) -> None:
        if not self._ended.done():  # else the caller has left meanwhile
            self._ended.set_result(error)

    async def done(self, job: Job) -> None:
        """Submit the job, of a stream once there is room for it, and wait for its end.

        Where the caller leaves early, e.g. because it is gone, the job is cancelled.

        Raises:
            ServerError: the job was refused, or failed.
        """
        room = STREAM.get()
        if room is not None:
            rows, size = await room.enter(job)
        try:
            with _Submitted(self._engines, job):
                error = await self._ended
        finally:
            if room is not None:
                room.leave(rows, size)
        if error is not None:
            raise error


class _Submitted:
    """A job in the engine's hands, its rows on its client's account: entered by submitting it, cancelled on leaving.

    A class and not a generator with `contextmanager`, which takes several times as long; each call pays for it.
    """

    __slots__ = ("_engines", "_held", "_job")

    def __init__(self, engines: Engines, job: Job) -> None:
        self._engines = engines
        self._job = job
        self._held = CLIENT.get(UNLIMITED).holding(len(job.rows), engines)

    def __enter__(self) -> None:
        call = CALL.get()
        self._held.__enter__()
        try:
            if call is not None and call.trace is not None:
                call.trace.follow(self._job)
            self._engines.submit(self._job)
        except BaseException:
            self._held.__exit__()
            raise

    def __exit__(self, *error: object) -> None:
        self._held.__exit__()
        if not self._job.ended:
            self._engines.cancel(self._job)


class PreviewedJob(PendingJob):
    """A job whose steps are told, too."""

    def __init__(self, engines: Engines, mailbox: Mailbox) -> None:
        super().__init__(engines, mailbox)
        self._previews: asyncio.Queue[StepPreview | None] = asyncio.Queue()  # None: there are no more

    def on_preview(self, row: Row, line: int) -> None:
        # The row goes on while the loop gets here: take what belongs to this step now.
        energies = (row.energy, row.gradient_norm) if row.program.lines[line].takes_gradient else (None, None)
        self._mailbox.put(self._put_preview, StepPreview(line + 1, row.preview, *energies))

    def _put_preview(self, preview: StepPreview) -> None:
        # A slow reader loses previews, never the result, and costs bounded memory.
        if self._previews.qsize() < MAX_PENDING_PREVIEWS:
            self._previews.put_nowait(preview)

    def _end(self, error: ServerError | None) -> None:
        super()._end(error)
        self._previews.put_nowait(None)

    async def previews(self, job: Job) -> AsyncGenerator[StepPreview, None]:
        """Submit the job; yields what its steps gave and returns when it is done. Otherwise as `done`."""
        job.on_preview = self.on_preview
        with _Submitted(self._engines, job):
            while (preview := await self._previews.get()) is not None:
                yield preview
            error = await self._ended
        if error is not None:
            raise error


def service_handler(
    service: ServiceDescriptor, servicer: object, metrics: Metrics, gate: Gate, tracing: Tracing | None = None
) -> grpc.GenericRpcHandler[Any, Any]:
    """The gRPC handler of a service: each method is the servicer's coroutine (or async generator) of that name.

    Requests that do not parse reach the table too, which the generated code does not give.
    """
    makers = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    methods = {}
    for method in service.methods:
        wrap = _stream if method.server_streaming else _unary
        methods[method.name] = makers[method.client_streaming, method.server_streaming](
            wrap(f"/{service.full_name}/{method.name}", getattr(servicer, method.name), metrics, gate, tracing),
            request_deserializer=_deserializer(method),
            response_serializer=message_factory.GetMessageClass(method.output_type).SerializeToString,
        )
    return grpc.method_handlers_generic_handler(service.full_name, methods)


async def answer(rpc: str, handler: Callable[[Any], Awaitable[Any]], request: Any, metrics: Metrics) -> Any:
    """The response to one request of a stream, or the `ServerError` it ends with: others of the stream go on.

    rpc: the name that the request is counted under.
    """
    with Observed(rpc, request, metrics) as observed:
        try:
            CLIENT.get(UNLIMITED).request()
            return await _with_current_model(handler, request)
        except Exception as error:
            return observed.failed(error)


async def _with_current_model(handler: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    """Call a handler, and again where its model went while it prepared the job: that must cost no request.

    Models go after others have taken their place, so that each round finds another one, or NotFound.
    """
    while True:
        try:
            return await handler(*arguments)
        except ModelGone as error:
            log.debug("%s; looking it up again", error)


async def _events_of_current_model(
    handler: Callable[..., AsyncGenerator[Any, None]], *arguments: Any
) -> AsyncGenerator[Any, None]:
    """As `_with_current_model`, of a stream of responses: jobs are refused before the first one."""
    while True:
        try:
            async with aclosing(handler(*arguments)) as events:
                async for event in events:
                    yield event
            return
        except ModelGone as error:
            log.debug("%s; looking it up again", error)


def _deserializer(method: MethodDescriptor) -> Callable[[bytes], message.Message | Malformed]:
    kind = message_factory.GetMessageClass(method.input_type)

    def deserialize(data: bytes) -> message.Message | Malformed:
        try:
            return kind.FromString(data)
        except message.DecodeError as error:
            return Malformed(f"not a {method.input_type.full_name}: {error}")

    return deserialize


def _unary(
    path: str, handler: Callable[..., Any], metrics: Metrics, gate: Gate, tracing: Tracing | None
) -> Callable[..., Any]:
    async def call(request: Any, context: Context) -> Any:
        with Observed(path, request, metrics, context, tracing) as observed:
            try:
                gate.enter(path, context)
                _check_parsed(request)
                return await _with_current_model(handler, request, context)
            except Exception as error:
                await abort(context, status_of(observed.failed(error)), observed.call)

    return call


def _stream(
    path: str, handler: Callable[..., Any], metrics: Metrics, gate: Gate, tracing: Tracing | None
) -> Callable[..., Any]:
    """`request` is a message, or the iterator of a stream of them."""

    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        with Observed(path, request, metrics, context, tracing) as observed:
            try:
                gate.enter(path, context)
                _check_parsed(request)
                given = _parsed(request) if isinstance(request, AsyncIterator) else request
                async with aclosing(_events_of_current_model(handler, given, context)) as responses:
                    async for response in responses:
                        yield response
            except Exception as error:
                await abort(context, status_of(observed.failed(error)), observed.call)

    return call


async def _parsed(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        _check_parsed(request)
        yield request


def _check_parsed(request: Any) -> None:
    if isinstance(request, Malformed):
        raise InvalidArgument("request", request.reason)


async def abort(context: Context, status: grpc.Status, call: Call) -> NoReturn:
    """End a call with a status; its id goes with it."""
    await context.abort(status.code, status.details, (*status.trailing_metadata, (REQUEST_ID, call.request_id)))
    raise AssertionError("abort raises")


def status_of(error: ServerError) -> grpc.Status:
    """The status that an error ends a call with, with its details."""
    text = message_of(error)
    details: list[message.Message] = []
    if isinstance(error, InvalidArgument):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=text)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, Overloaded):
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_seconds * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(AnyMessage())
        packed[-1].Pack(detail)
    code = STATUS[type(error)].value[0]
    return rpc_status.to_status(status_pb2.Status(code=code, message=text, details=packed))


def message_of(error: ServerError) -> str:
    """The error's text, cut to what fits in trailers: what came is part of it, and may be of any length."""
    text = str(error).encode()
    return text.decode() if len(text) <= MAX_MESSAGE_BYTES else text[:MAX_MESSAGE_BYTES].decode(errors="ignore") + "..."
