"""Sends requests and notes what becomes of each, in one of two ways.

Open loop (`send`): at scheduled times, whatever becomes of the earlier ones. A latency runs from the *scheduled*
arrival to the answer. So a server that stalls is charged for all the requests that were due meanwhile, even where this
process itself was late in sending them (coordinated omission).

Closed loop (`send_in_turns`): each of some clients sends when its last answer has come. The server sets the pace, and a
stall holds the clients back; nothing is due meanwhile, so that nothing can be charged for it. Latencies are service
times.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .schedule import Schedule
from .targets import Answer, CallFailed, Target

HEAD_START = 0.2
"""Seconds between the start of the clock and the first arrival."""
TICK = 0.25
"""Seconds between two calls of `progress`."""
OK = "OK"
NOT_SENT = "NOT_SENT"
"""In place of a status code: the sender's own bound on open requests was reached."""
NO_ANSWER = Answer()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request; times in seconds.

    scheduled: arrival, from the start of the load. lag: how much later it was sent.
    latency: from the scheduled arrival to the answer. code: OK, or as in `CallFailed`.
    answer: what the server reported; nothing without an answer.
    """

    kind: int
    scheduled: float
    lag: float
    latency: float
    code: str
    answer: Answer = NO_ANSWER

    @property
    def ok(self) -> bool:
        return self.code == OK

    @property
    def service(self) -> float:
        """From the actual sending to the answer."""
        return self.latency - self.lag


Progress = Callable[[int, Sequence[Outcome]], None]
"""Called a few times a second with the number of requests sent and the outcomes so far, in the order of the answers."""


def no_progress(sent: int, done: Sequence[Outcome]) -> None:
    """Tell nobody."""


async def send(
    target: Target,
    messages: Sequence[Any],
    schedule: Schedule,
    *,
    timeouts: Sequence[float],
    max_open: int,
    progress: Progress = no_progress,
) -> list[Outcome]:
    """Send `messages[i]` to a connected target at `schedule.at[i]`, and wait for all answers.

    timeouts: seconds that a request may take once sent, of each kind. max_open: bound on requests without an answer; a
    request beyond it is not sent and counts as an error.

    Returns: one outcome a request, in the order of their answers.
    """
    loop = asyncio.get_running_loop()
    stopped = threading.Event()
    done: list[Outcome] = []
    finished = asyncio.Event()
    kinds, times = schedule.kind.tolist(), schedule.at.tolist()
    launched = 0
    start = time.monotonic() + HEAD_START

    async def one(index: int) -> None:
        kind, due = kinds[index], start + times[index]
        if launched - len(done) > max_open:
            late = time.monotonic() - due
            done.append(Outcome(kind, times[index], late, late, NOT_SENT))
        else:
            done.append(await _ask(target, messages[index], timeouts[kind], kind, times[index], due))
        if len(done) == len(times):
            finished.set()

    def launch(index: int) -> None:
        nonlocal launched
        if not stopped.is_set():
            launched += 1
            group.create_task(one(index))

    def pace() -> None:
        # A thread, because the event loop's own timers are rounded up to whole milliseconds.
        for index, at in enumerate(times):
            wait = start + at - time.monotonic()
            if stopped.wait(max(wait, 0.0)) if wait > 0 else stopped.is_set():
                return
            loop.call_soon_threadsafe(launch, index)

    pacer = threading.Thread(target=pace, name="pacer", daemon=True)
    try:
        async with asyncio.TaskGroup() as group:
            pacer.start()
            while len(done) < len(times):
                progress(launched, done)
                await _wait(finished)
    finally:
        stopped.set()
        pacer.join()
    progress(launched, done)
    return done


async def send_in_turns(
    target: Target,
    messages: Sequence[Any],
    kinds: Sequence[int],
    *,
    clients: int,
    think: float,
    seconds: float,
    timeouts: Sequence[float],
    seed: int = 0,
    progress: Progress = no_progress,
) -> list[Outcome]:
    """Have each of some clients send the next of the messages as soon as its last answer has come, for some seconds.

    messages, kinds: taken in their order, and again from the first after the last. clients: how many.
    think: seconds that a client waits before each request, on average; exponentially distributed, so that clients do
    not move in step. timeouts: as for `send`.

    Returns: one outcome a request, in the order of their answers. A request is scheduled when it is sent.
    """
    done: list[Outcome] = []
    finished = asyncio.Event()
    turns = itertools.count()
    sent, resting = 0, 0
    start = time.monotonic()

    async def client(number: int) -> None:
        nonlocal sent, resting
        thoughts = random.Random(f"{seed} {number}")
        while True:
            if think:
                left = start + seconds - time.monotonic()
                await asyncio.sleep(min(thoughts.expovariate(1.0 / think), left))
            now = time.monotonic()
            if now - start >= seconds:
                break
            sent += 1
            index = next(turns) % len(messages)
            kind = kinds[index]
            done.append(await _ask(target, messages[index], timeouts[kind], kind, now - start, now))
        resting += 1
        if resting == clients:
            finished.set()

    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(client(number))
        while not finished.is_set():
            progress(sent, done)
            await _wait(finished)
    progress(sent, done)
    return done


async def _ask(target: Target, message: Any, within: float, kind: int, scheduled: float, due: float) -> Outcome:
    sent = time.monotonic()
    try:
        answer = await target.call(message, within)
    except CallFailed as failed:
        return Outcome(kind, scheduled, sent - due, time.monotonic() - due, failed.code)
    return Outcome(kind, scheduled, sent - due, time.monotonic() - due, OK, answer)


async def _wait(event: asyncio.Event) -> None:
    """Until it is set, or until it is time to tell of the progress."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), TICK)
