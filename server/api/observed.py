"""One call as others see it: its id, and what is told of its end to metrics, status page, log and traces."""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..access.clients import CLIENT
from ..errors import STATUS, Internal, ServerError
from ..names import MAX_NAME
from ..observability.call import CALL, REQUEST_ID, Call, request_id_of
from ..observability.logs import printable
from ..observability.metrics import Metrics

if TYPE_CHECKING:
    from ..observability.tracing import Tracing

log = logging.getLogger(__name__)

MAX_TEXT = 1000  # characters of an error in the log; what came is part of it, and may be of any length


class Observed:
    """A call, or a request of a stream, from its begin to its end."""

    def __init__(
        self, rpc: str, request: Any, metrics: Metrics, context: Any = None, tracing: Tracing | None = None
    ) -> None:
        """rpc: the method, with its service where it is a call. context: of the call.

        Without a context it is a request of the stream that this task answers, and goes under its id.
        """
        self._metrics = metrics
        self._code = "OK"
        self._error: BaseException | None = None
        self._started = perf_counter()
        name = rpc.rpartition("/")[2]
        model = (getattr(request, "model", "") or getattr(request, "model_name", ""))[:MAX_NAME]
        stream = CALL.get()
        if context is not None:
            metadata = context.invocation_metadata()
            self.call = Call(request_id_of(metadata), name, model)
            context.set_trailing_metadata(((REQUEST_ID, self.call.request_id),))
            if tracing is not None:
                self.call.trace = tracing.start(rpc, metadata, self.call)
        elif stream is not None:
            self.call = Call(stream.request_id, name, model)
            if stream.trace is not None:
                self.call.trace = stream.trace.child(self.call)
        else:
            self.call = Call(request_id_of(()), name, model)
        CALL.set(self.call)

    def __enter__(self) -> Observed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        if kind is not None and issubclass(kind, (asyncio.CancelledError, GeneratorExit)):
            self._code = "CANCELLED"
        call, seconds = self.call, perf_counter() - self._started
        text = "" if self._error is None else printable(str(self._error)[:MAX_TEXT])
        self._metrics.observe_call(call.rpc, call.model, self._code, seconds, request_id=call.request_id, error=text)
        self._log(text, seconds)
        if call.trace is not None:
            client = CLIENT.get(None)
            call.trace.end(self._code, text, "" if client is None else client.name)

    def failed(self, error: Exception) -> ServerError:
        """What the caller is told; an exception that is not a `ServerError` is a bug."""
        self._error = error
        if not isinstance(error, ServerError):
            error = Internal(f"{self.call.rpc} failed: {error!r}")
        self._code = STATUS[type(error)].name
        return error

    def _log(self, text: str, seconds: float) -> None:
        """One line for each call: what the server did wrong, what callers did wrong, and at debug the rest."""
        code = self._code
        level = logging.DEBUG if self._error is None else logging.ERROR if code == "INTERNAL" else logging.INFO
        if log.isEnabledFor(level):
            bug = None if isinstance(self._error, ServerError) else self._error
            what = f"{self.call.rpc} ended {code}" + (f": {text}" if text else "")
            log.log(level, "%s", what, extra={"code": code, "seconds": seconds}, exc_info=bug)
