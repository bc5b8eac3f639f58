"""From the engine's thread to the event loop: however many jobs a step ends, the loop is woken once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from threading import get_ident
from typing import Any


class Mailbox:
    """Calls that other threads leave for the event loop, run there in the order in which they came.

    To wake a loop is a system call, and the most expensive part of telling it of a job that has ended. What the loop's
    own thread has to say is called at once: jobs that were run there have told nothing before.
    Callbacks must not raise: what comes after them would be late.
    Made within the loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread = get_ident()
        self._letters: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._woken = False

    def put(self, callback: Callable[..., None], *arguments: Any) -> None:
        """Have the loop call back; from any thread."""
        if get_ident() == self._thread:
            callback(*arguments)
            return
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
