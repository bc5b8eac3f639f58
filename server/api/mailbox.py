"""From the engine's thread to the event loop: however many jobs a step ends, the loop is woken once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any


class Mailbox:
    """Calls that other threads leave for the event loop, run there in the order in which they came.

    To wake a loop is a system call, and the most expensive part of telling it of a job that has ended.
    Callbacks must not raise: what comes after them would be late.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._letters: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._woken = False

    def put(self, callback: Callable[..., None], *arguments: Any) -> None:
        """Have the loop call back; from any thread."""
        self._letters.append((callback, arguments))
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._empty)

    def _empty(self) -> None:
        # First this: whoever puts a letter in after the last one was taken out must wake the loop again.
        self._woken = False
        while self._letters:
            callback, arguments = self._letters.popleft()
            callback(*arguments)
