"""A real server in this process, on free ports, and raw gRPC calls to it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from protos import fewstep_pb2 as pb
from server.app import App
from server.config import Config, Limits
from server.loop.engine import Engine

UNCUT = Limits(step_seconds=60.0)
"""For tests that say which batches run: on a slow machine the default cuts them after fewer rows."""


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for what another thread or process brings about; it fails the test if it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        threading.Event().wait(0.005)


class RunningServer:
    """A started server: its app, its port, and one method for every call."""

    def __init__(
        self, app: App, loop: asyncio.AbstractEventLoop, credentials: grpc.ChannelCredentials | None = None
    ) -> None:
        self.app = app
        self.loop = loop
        self.address = f"127.0.0.1:{app.port}"
        self.channel = self.open_channel(credentials)

    @property
    def engine(self) -> Engine:
        """The engine of a server with one device."""
        (engine,) = self.app.engines
        return engine

    def open_channel(self, credentials: grpc.ChannelCredentials | None = None) -> grpc.Channel:
        """A channel of its own, with TLS where credentials are given."""
        options = [("grpc.max_receive_message_length", 1 << 28), ("grpc.max_send_message_length", 1 << 28)]
        if credentials is None:
            return grpc.insecure_channel(self.address, options)
        return grpc.secure_channel(self.address, credentials, options)

    def call(self, service: str, method: str, request: Any, response: Any, **kwargs: Any) -> Any:
        """One unary call; `request` may be raw bytes."""
        stub = self.channel.unary_unary(
            f"/fewstep.v1.{service}/{method}",
            request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        return stub(request, **kwargs)

    def sample(self, request: pb.SampleRequest | bytes, **kwargs: Any) -> pb.SampleResponse:
        return self.call("Sampler", "Sample", request, pb.SampleResponse, timeout=60, **kwargs)

    def refine(self, request: pb.RefineRequest | bytes, **kwargs: Any) -> pb.RefineResponse:
        return self.call("Sampler", "Refine", request, pb.RefineResponse, timeout=60, **kwargs)

    def score(self, request: pb.ScoreRequest | bytes, **kwargs: Any) -> pb.ScoreResponse:
        return self.call("Scorer", "Score", request, pb.ScoreResponse, timeout=60, **kwargs)

    def stream(self, request: pb.SampleRequest, **kwargs: Any) -> Any:
        stub = self.channel.unary_stream(
            "/fewstep.v1.Sampler/SampleStream",
            request_serializer=pb.SampleRequest.SerializeToString,
            response_deserializer=pb.SampleEvent.FromString,
        )
        return stub(request, timeout=60, **kwargs)

    def later(self, request: pb.SampleRequest, **kwargs: Any) -> grpc.Future:
        """A Sample call that runs in the background."""
        stub = self.channel.unary_unary(
            "/fewstep.v1.Sampler/Sample",
            request_serializer=pb.SampleRequest.SerializeToString,
            response_deserializer=pb.SampleResponse.FromString,
        )
        return stub.future(request, timeout=kwargs.pop("timeout", 60), **kwargs)


@contextmanager
def running_server(
    repository: Path, *, credentials: grpc.ChannelCredentials | None = None, **options: Any
) -> Iterator[RunningServer]:
    """Start a server, yield it, stop it; an error of its own fails the test. credentials: of the test's channel."""
    config = Config(repository=repository, port=0, metrics_port=0, **options)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="server loop", daemon=True)
    thread.start()
    app = App(config)
    asyncio.run_coroutine_threadsafe(app.start(), loop).result(300)
    server = RunningServer(app, loop, credentials)
    try:
        yield server
    finally:
        server.channel.close()
        asyncio.run_coroutine_threadsafe(app.stop(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
