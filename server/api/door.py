"""The door that all calls come through: it knows how many wait before it, and turns away those that came in vain."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from inspect import isasyncgenfunction
from time import monotonic
from typing import Any

import grpc

from ..errors import Overloaded
from ..observability.call import Call, request_id_of
from ..observability.metrics import Metrics
from .backlog import Backlog
from .calls import Malformed, abort, status_of

log = logging.getLogger(__name__)

Handler = grpc.RpcMethodHandler

STANDING_SECONDS = 0.05
"""From here on calls are looked at before they are read: a shorter wait is no overload, and a few calls at once."""

TELL_SECONDS = 1.0
"""How often the log tells of those turned away, at most."""

NO_MESSAGE = Malformed("the call has no message")


class Door(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """The one generic handler of the server, of all its services.

    While calls stand in line, one that has waited there for longer than it has time left is refused before its message
    is read, at a fraction of what it costs to handle it: what is done meanwhile is done for those that can still be
    answered. Calls without a deadline wait.
    """

    def __init__(self, backlog: Backlog, metrics: Metrics, *, clock: Callable[[], float] = monotonic) -> None:
        self._backlog = backlog
        self._metrics = metrics
        self._clock = clock
        self._services: list[tuple[grpc.GenericRpcHandler[Any, Any], bool]] = []
        self._methods: dict[str, tuple[Handler[Any, Any], Handler[Any, Any]]] = {}
        self._turned_away = 0
        self._told_at = clock()
        self._refused: tuple[int, Overloaded, grpc.Status] | None = None

    def add(self, service: grpc.GenericRpcHandler[Any, Any]) -> None:
        """Add a service whose calls may be turned away."""
        self._services.append((service, True))

    def add_generic_rpc_handlers(self, services: Iterable[grpc.GenericRpcHandler[Any, Any]]) -> None:
        """What generated code calls: services whose calls are always answered, as health is."""
        self._services += [(service, False) for service in services]

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Handler[Any, Any]]) -> None:
        """What generated code calls for the same service again."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler[Any, Any] | None:
        method = handler_call_details.method
        handlers = self._methods.get(method) or self._find(handler_call_details)
        if handlers is None:
            return None
        return handlers[self._backlog.seconds > STANDING_SECONDS]

    def _find(self, details: grpc.HandlerCallDetails) -> tuple[Handler[Any, Any], Handler[Any, Any]] | None:
        for service, may_refuse in self._services:
            handler = service.service(details)
            if handler is not None:
                counted = _counted(handler, self._backlog)
                checked = self._checked(handler, details.method) if may_refuse else counted
                self._methods[details.method] = (counted, checked)
                return counted, checked
        return None

    def _checked(self, handler: Handler[Any, Any], method: str) -> Handler[Any, Any]:
        """A handler that looks at the time before it reads: for gRPC a stream of requests, whatever it is."""
        name = method.rpartition("/")[2]
        behaviour = _behaviour(handler)

        async def call(requests: AsyncIterator[Any], context: Any) -> None:
            with self._backlog:
                left = context.time_remaining()
                waited = self._backlog.seconds
                if left is not None and left < waited:
                    await self._turn_away(name, context, waited)
                request = requests if handler.request_streaming else await _first(requests)
                if handler.response_streaming:
                    async with aclosing(behaviour(request, context)) as responses:
                        async for response in responses:
                            await context.write(response)
                else:
                    await context.write(await behaviour(request, context))

        return grpc.stream_stream_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)

    async def _turn_away(self, name: str, context: Any, waited: float) -> None:
        error, status = self._refusal(waited)
        call = Call(request_id_of(context.invocation_metadata()), name)
        self._metrics.observe_call(name, "", status.code.name, waited, request_id=call.request_id, error=str(error))
        self._turned_away += 1
        if (now := self._clock()) >= self._told_at + TELL_SECONDS:
            log.warning("%d calls turned away unread: %s", self._turned_away, error)
            self._turned_away, self._told_at = 0, now
        await abort(context, status, call)

    def _refusal(self, waited: float) -> tuple[Overloaded, grpc.Status]:
        """What calls are told now; made once for each look at the backlog, as it takes longer than all the rest."""
        if self._refused is None or self._refused[0] != self._backlog.calls:
            calls = self._backlog.calls
            error = Overloaded(f"{calls} calls wait to be read, and this one has waited for most of its time", waited)
            self._refused = (calls, error, status_of(error))
        return self._refused[1:]


async def _first(requests: AsyncIterator[Any]) -> Any:
    """The only message of a call; without `anext`'s default, which gRPC's iterators fail on."""
    async for request in requests:
        return request
    return NO_MESSAGE


def _behaviour(handler: Handler[Any, Any]) -> Callable[..., Any]:
    """Its coroutine function, or its asynchronous generator function."""
    kinds = (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
    (found,) = filter(None, kinds)
    return found


def _counted(handler: Handler[Any, Any], backlog: Backlog) -> Handler[Any, Any]:
    """The handler, telling the backlog of its begin and end."""
    behaviour = _behaviour(handler)

    async def answer(request: Any, context: Any) -> Any:
        with backlog:
            return await behaviour(request, context)

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        with backlog:
            async with aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    yield response

    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    # Handlers of streams may also be coroutines that write by themselves.
    function = stream if isasyncgenfunction(behaviour) else answer
    return make(function, handler.request_deserializer, handler.response_serializer)
