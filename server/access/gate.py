"""The gate that every call passes: who calls, whether it may, and whether it does not ask for too much."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import grpc

from ..config import Config, Security, is_loopback
from ..errors import STATUS, PermissionDenied, Unauthenticated
from ..observability.call import CALL, REQUEST_ID, Call, request_id_of
from ..observability.metrics import Metrics
from .clients import CLIENT, UNLIMITED, Addresses
from .tokens import Tokens

log = logging.getLogger(__name__)

OPEN_METHODS = frozenset(
    {
        "/grpc.health.v1.Health/Check",
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
    }
)
"""What probes call: they have no token, and learn no more than whether the server is up.

Not Health/Watch: its calls stay open, and anybody could use up all that the server takes.
"""

ADMINISTRATION = frozenset({"LoadModel", "UnloadModel", "ReloadModel", "RepositoryModelLoad", "RepositoryModelUnload"})
"""Methods that change what is served for everybody."""


def exposures(config: Config) -> list[str]:
    """What a configuration leaves open that an operator should know of, one sentence each."""
    security = config.security
    found = []
    if not is_loopback(config.host):
        if not security.tls:
            found.append(f"insecure: all that goes to and from {config.host} can be read and changed on its way")
        if security.tokens is None and security.tls_client_ca is None:
            found.append(f"no tokens and no tls_client_ca: whoever reaches {config.host} may call")
    if not is_loopback(config.metrics_host):
        found.append(f"metrics_host: whoever reaches {config.metrics_host} can read the metrics and the status page")
    if config.otlp_endpoint is not None:
        endpoint = urlsplit(config.otlp_endpoint)
        if endpoint.scheme == "http" and not is_loopback(endpoint.hostname or ""):
            found.append(f"otlp_endpoint: traces can be read on their way to {endpoint.hostname}")
    return found


class Gate:
    """Finds the client of each call. With a tokens file by its token, else by its address."""

    def __init__(self, security: Security, metrics: Metrics, *, clock: Callable[[], float] = monotonic) -> None:
        """
        Raises:
            ConfigError: the tokens file is bad.
        """
        self._tokens = None if security.tokens is None else Tokens(security.tokens, security.client, clock=clock)
        self._addresses = Addresses(security.client, clock)
        self._metrics = metrics

    @property
    def interceptors(self) -> Sequence[grpc.aio.ServerInterceptor[Any, Any]]:
        """For the server: they refuse before a message is read. None without tokens."""
        return [] if self._tokens is None else [_Authentication(self)]

    def enter(self, method: str, context: Any) -> None:
        """Let a call in, and remember its client for what its handler does (see `CLIENT`).

        method: /SERVICE/METHOD.

        Raises:
            Unauthenticated: nobody has authenticated the call. PermissionDenied: it takes an administrator.
            Overloaded: its client sends too many.
        """
        if method in OPEN_METHODS:
            CLIENT.set(UNLIMITED)
        elif self._tokens is None:
            CLIENT.set(self._addresses.find(context.peer()))
        client = CLIENT.get(None)
        if client is None:  # the interceptor sets it: one that is missing must not open the gate
            raise Unauthenticated
        if method.rpartition("/")[2] in ADMINISTRATION and not client.administrator:
            who = "a call from another machine" if self._tokens is None else f"client {client.name}"
            raise PermissionDenied(f"takes an administrator, which {who} is not")
        client.request()

    def authenticate(self, method: str, metadata: Sequence[tuple[str, str | bytes]]) -> bool:
        """Find the client of a call by its token; False where it may not be let in."""
        if method in OPEN_METHODS:
            CLIENT.set(UNLIMITED)
            return True
        token = _bearer_token(metadata)
        client = self._tokens.find(token) if self._tokens is not None and token is not None else None
        if client is None:
            return False
        CLIENT.set(client)
        return True

    def refused(self, method: str, metadata: Sequence[tuple[str, str | bytes]] = ()) -> None:
        """Count a call without valid credentials; method: the name of one that there is, or empty."""
        call = Call(request_id_of(metadata), method)
        CALL.set(call)
        code = STATUS[Unauthenticated].name
        self._metrics.observe_call(method, "", code, 0.0, request_id=call.request_id, error=str(Unauthenticated()))
        log.info("%s ended %s", method or "a call", code, extra={"code": code})


class _Authentication(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Stands before all services, reflection included."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        method = handler_call_details.method
        handler = await continuation(handler_call_details)
        metadata = handler_call_details.invocation_metadata
        if self._gate.authenticate(method, metadata):
            return handler
        # The name comes from the caller: only one of ours may become a label.
        self._gate.refused(method.rpartition("/")[2] if handler is not None else "", metadata)
        return grpc.stream_stream_rpc_method_handler(_refuse)


async def _refuse(requests: AsyncIterator[bytes], context: Any) -> None:
    """Ends the call without reading its message, whatever the method."""
    call = CALL.get()
    own = () if call is None else ((REQUEST_ID, call.request_id),)
    await context.abort(STATUS[Unauthenticated], str(Unauthenticated()), own)


def _bearer_token(metadata: Sequence[tuple[str, str | bytes]]) -> str | None:
    """The token of the one authorization entry; None where there is none, or more than one."""
    values = [value for key, value in metadata if key == "authorization"]
    if len(values) != 1 or not isinstance(values[0], str):
        return None
    scheme, _, token = values[0].partition(" ")
    return token if scheme.lower() == "bearer" else None
