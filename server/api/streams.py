"""Streams of requests: several are handled at a time and answered in their order, and none crowds out the others."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextvars import ContextVar, copy_context
from typing import Any

from ..access.clients import CLIENT, UNLIMITED
from ..config import Limits
from ..types import Job

MAX_STREAM_REQUESTS = 32  # of one stream at a time


class StreamRoom:
    """The rows that the requests of one stream may have in the engine at a time.

    A stream that sends as fast as it is read would else fill the queue, and be refused for its own requests' sake. Half
    of the queue leaves room to others; a request with more rows than that has the stream's room to itself.
    """

    def __init__(self, limits: Limits) -> None:
        self._most_rows = min(limits.max_waiting_rows // 2, CLIENT.get(UNLIMITED).limits.rows)
        self._most_bytes = limits.max_waiting_bytes // 2
        self._rows = self._bytes = 0
        self._left = asyncio.Event()

    async def enter(self, job: Job) -> tuple[int, int]:
        """Wait until there is room for a job's rows, and take it; returns how many, and of how many bytes: `leave`."""
        rows, size = len(job.rows), len(job.rows) * job.row_bytes
        while self._rows and (self._rows + rows > self._most_rows or self._bytes + size > self._most_bytes):
            self._left.clear()
            await self._left.wait()
        self._rows += rows
        self._bytes += size
        return rows, size

    def leave(self, rows: int, size: int) -> None:
        """A job that had entered has ended, whatever of its rows it still has."""
        self._rows -= rows
        self._bytes -= size
        self._left.set()


STREAM: ContextVar[StreamRoom | None] = ContextVar("stream", default=None)
"""Of the stream that the request is one of."""


async def in_order(
    requests: AsyncIterator[Any], handler: Callable[[Any], Coroutine[Any, Any, Any]], limits: Limits
) -> AsyncGenerator[Any, None]:
    """Handle the requests of a stream, several at a time; yields the results in the order of the requests.

    Leaving early cancels what runs.
    """
    context = copy_context()
    context.run(STREAM.set, StreamRoom(limits))
    incoming = aiter(requests)
    reading: asyncio.Future[Any] | None = asyncio.ensure_future(anext(incoming, None))
    running: deque[asyncio.Task[Any]] = deque()
    try:
        while reading is not None or running:
            # A full stream is not read from: HTTP/2 flow control then holds its sender back.
            awaited = [reading] if reading is not None and len(running) < MAX_STREAM_REQUESTS else []
            await asyncio.wait([*awaited, *list(running)[:1]], return_when=asyncio.FIRST_COMPLETED)
            if awaited and awaited[0].done():
                request = awaited[0].result()
                reading = None
                if request is not None:
                    running.append(asyncio.create_task(handler(request), context=context.copy()))
                    reading = asyncio.ensure_future(anext(incoming, None))
            while running and running[0].done():
                yield running.popleft().result()
    finally:
        left = [*running, *([reading] if reading is not None else [])]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
