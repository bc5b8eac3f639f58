"""Sends one request of the campaign, whatever its fault, and tells how it ended."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import grpc
import grpc.aio

from models.machine import ROOT
from protos import fewstep_pb2 as pb
from protos import inference_pb2 as oip

from .requests import HUNG, INFER, INFER_STREAM, KILLED, SAMPLE, SCORE, STREAM, Request

ANSWERS: Mapping[str, Any] = {
    SAMPLE: pb.SampleResponse,
    STREAM: pb.SampleEvent,
    SCORE: pb.ScoreResponse,
    INFER: oip.ModelInferResponse,
    INFER_STREAM: oip.ModelStreamInferResponse,
}
OPTIONS: Sequence[tuple[str, Any]] = (("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1))
EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs lack it
ALONE = (("grpc.use_local_subchannel_pool", 1),)
"""A connection of its own, where gRPC would share one between the channels of a process."""
NARROW = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))
"""A window of a kilobyte: a reader that does not read holds the server's sending up at once."""


@dataclass(frozen=True)
class Ending:
    """How a request ended. seconds: that it took. answers: all messages that came, in order."""

    code: str
    detail: str
    seconds: float
    answers: tuple[Any, ...] = ()


class Caller:
    """Sends requests to one server, over one connection where the request does not ask for its own.

    A context manager of asyncio's.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    async def __aenter__(self) -> Caller:
        self._channel = self._open()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._channel.close(None)

    async def send(self, request: Request, on_first: Callable[[], None] = lambda: None) -> Ending:
        """Send a request and wait for its end, at most as long as its patience lasts.

        on_first: called when a stream's first message has come.
        """
        started = time.monotonic()
        sending = asyncio.ensure_future(self._send(request, on_first))
        done, _ = await asyncio.wait({sending}, timeout=request.patience)
        seconds = time.monotonic() - started
        if not done:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)  # its end counts no more
            return Ending(HUNG, f"no end within {request.patience:g} s", seconds)
        return replace(sending.result(), seconds=seconds)

    def _open(self, *options: tuple[str, Any]) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self._address, options=[*OPTIONS, *options])

    async def _send(self, request: Request, on_first: Callable[[], None]) -> Ending:
        if request.killed:
            return await self._sent_by_one_to_be_killed(request)
        if request.read_every:
            async with self._open(*ALONE, *NARROW) as channel:
                return await _call(channel, request)
        if request.connections:
            return await self._sent_by_many(request)
        return await _call(self._channel, request, on_first)

    async def _sent_by_many(self, request: Request) -> Ending:
        """Every connection sends it; the first ending that is not allowed is told, else all answers."""
        async with AsyncExitStack() as stack:
            channels = [await stack.enter_async_context(self._open(*ALONE)) for _ in range(request.connections)]
            endings = await asyncio.gather(*(_call(channel, request) for channel in channels))
        for ending in endings:
            if ending.code not in request.allowed:
                return ending
        return replace(endings[0], answers=tuple(answer for ending in endings for answer in ending.answers))

    async def _sent_by_one_to_be_killed(self, request: Request) -> Ending:
        """A process opens streams and is killed, without a word to the server, once each has shown something."""
        command = [sys.executable, "-m", "bench.faults.doomed", self._address, request.data[0].hex()]
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
        )
        try:
            said = await process.stdout.readline() if process.stdout is not None else b""
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
        if said.strip() != b"reading":
            return Ending("UNKNOWN", f"the client ended by itself: {said.decode(errors='replace')}", 0.0)
        return Ending(KILLED, "", 0.0)


async def _call(channel: grpc.aio.Channel, request: Request, on_first: Callable[[], None] = lambda: None) -> Ending:
    answer = ANSWERS.get(request.method)
    parse = answer.FromString if answer is not None else None
    if request.method in (STREAM, INFER_STREAM):
        return await _read_stream(channel, request, parse, on_first)
    call = channel.unary_unary(request.method, None, parse)(request.data[0], timeout=request.timeout)
    _leave_later(call, request)
    code = await call.code()
    answers = (await call,) if code is grpc.StatusCode.OK else ()
    return Ending(code.name, await call.details() or "", 0.0, answers)


async def _read_stream(channel: grpc.aio.Channel, request: Request, parse: Any, on_first: Callable[[], None]) -> Ending:
    if request.method == INFER_STREAM:
        call: Any = channel.stream_stream(request.method, None, parse)(_each(request.data), timeout=request.timeout)
    else:
        call = channel.unary_stream(request.method, None, parse)(request.data[0], timeout=request.timeout)
    _leave_later(call, request)
    answers = []
    try:
        while not math.isinf(request.read_every):
            message = await call.read()
            if message is EOF:
                break
            answers.append(message)
            if len(answers) == 1:
                on_first()
            await asyncio.sleep(request.read_every)
    except grpc.aio.AioRpcError:
        pass  # told by the code
    except asyncio.CancelledError:
        if not call.cancelled():
            raise
    try:
        code = await call.code()
    finally:
        call.cancel()  # has no effect on a call that has ended
    return Ending(code.name, await call.details() or "", 0.0, tuple(answers))


async def _each(messages: Sequence[bytes]) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


def _leave_later(call: Any, request: Request) -> None:
    if request.cancel_after is not None:
        leaving = asyncio.get_running_loop().call_later(request.cancel_after, call.cancel)
        call.add_done_callback(lambda _: leaving.cancel())
