"""A server between a caller and the real one, which passes everything on but what a test tampers with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc

Tamper = Callable[[str, list[bytes]], Iterable[bytes]]
"""From a method's path and all messages of its answer to those that are passed on."""

STREAM_OF_REQUESTS = "/ModelStreamInfer"
LONGEST = 60.0


class _Between(grpc.GenericRpcHandler):
    def __init__(self, channel: grpc.Channel, tamper: Tamper) -> None:
        self._channel, self._tamper = channel, tamper

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        path = details.method

        def answer(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            streamed = path.endswith(STREAM_OF_REQUESTS)
            make: Any = self._channel.stream_stream if streamed else self._channel.unary_stream
            sent: Any = requests if streamed else next(requests)
            try:
                # A call without a deadline has centuries left, which are too many to ask for.
                messages = list(make(path, None, None)(sent, timeout=min(context.time_remaining(), LONGEST)))
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())
            yield from self._tamper(path, messages)

        return grpc.stream_stream_rpc_method_handler(answer)


@contextmanager
def between(address: str, tamper: Tamper) -> Iterator[str]:
    """Stand before the server at `address`; yields the address to call instead."""
    with grpc.insecure_channel(address) as channel:
        server = grpc.server(ThreadPoolExecutor(32), options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers([_Between(channel, tamper)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(grace=None).wait()
