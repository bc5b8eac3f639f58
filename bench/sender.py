"""Sends requests at their scheduled times, whatever becomes of the earlier ones: an open loop.

A latency runs from the *scheduled* arrival to the answer. So a server that stalls is charged for all the requests
that were due meanwhile, even where this process itself was late in sending them (coordinated omission).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
import grpc.aio

from protos import fewstep_pb2 as pb
from protos import fewstep_pb2_grpc as rpc

from .schedule import Schedule

HEAD_START = 0.2
"""Seconds between the start of the clock and the first arrival, in which the connection is made ready."""
NOT_SENT = "NOT_SENT"
"""In place of a status code: the sender's own bound on open requests was reached."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request; times in seconds.

    scheduled: arrival, from the start of the load. lag: how much later it was sent.
    latency: from the scheduled arrival to the answer. code: name of the gRPC status.
    The rest is what the server reported, zero without an answer.
    """

    kind: int
    scheduled: float
    lag: float
    latency: float
    code: str
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    server_seconds: float = 0.0
    mean_batch_rows: float = 0.0

    @property
    def ok(self) -> bool:
        return self.code == grpc.StatusCode.OK.name


async def send(
    address: str,
    requests: Sequence[pb.SampleRequest | pb.ScoreRequest],
    schedule: Schedule,
    *,
    request_timeout: float,
    max_open: int,
    progress: Callable[[int, int], None] = lambda sent, done: None,
) -> list[Outcome]:
    """Send `requests[i]` at `schedule.at[i]` and wait for all answers.

    request_timeout: seconds that a request may take once sent. max_open: bound on requests without an answer; a request
    beyond it is not sent and counts as an error. progress: called a few times a second with requests sent and done.

    Returns: one outcome a request, in the order of the schedule.
    """
    options = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        methods = {pb.SampleRequest: rpc.SamplerStub(channel).Sample, pb.ScoreRequest: rpc.ScorerStub(channel).Score}
        await asyncio.wait_for(channel.channel_ready(), request_timeout)
        loop = asyncio.get_running_loop()
        stopped = threading.Event()
        tasks: list[asyncio.Task[Outcome]] = []
        done = 0
        all_sent = asyncio.Event()
        start = time.monotonic() + HEAD_START

        async def one(index: int) -> Outcome:
            nonlocal done
            kind, scheduled = int(schedule.kind[index]), float(schedule.at[index])
            due = start + scheduled
            sent = time.monotonic()
            try:
                if len(tasks) - done > max_open:
                    return Outcome(kind, scheduled, sent - due, sent - due, NOT_SENT)
                request = requests[index]
                answer = await methods[type(request)](request, timeout=request_timeout)
            except grpc.aio.AioRpcError as error:
                return Outcome(kind, scheduled, sent - due, time.monotonic() - due, error.code().name)
            finally:
                done += 1
            latency = time.monotonic() - due
            timing = answer.timing
            return Outcome(
                *(kind, scheduled, sent - due, latency, grpc.StatusCode.OK.name),
                *(timing.queue_seconds, timing.compute_seconds, timing.total_seconds, timing.mean_batch_rows),
            )

        def launch(index: int) -> None:
            tasks.append(loop.create_task(one(index)))

        def pace() -> None:
            # A thread, because the event loop's own timers are rounded up to whole milliseconds.
            for index in range(len(schedule)):
                wait = start + float(schedule.at[index]) - time.monotonic()
                if stopped.wait(max(wait, 0.0)) if wait > 0 else stopped.is_set():
                    return
                loop.call_soon_threadsafe(launch, index)
            loop.call_soon_threadsafe(all_sent.set)

        pacer = threading.Thread(target=pace, name="pacer", daemon=True)
        pacer.start()
        try:
            while not all_sent.is_set() or done < len(schedule):
                progress(len(tasks), done)
                if all_sent.is_set():
                    await asyncio.wait(tasks, timeout=0.25)
                else:
                    try:
                        await asyncio.wait_for(all_sent.wait(), 0.25)
                    except TimeoutError:
                        continue
            progress(len(tasks), done)
            return [await task for task in tasks]
        finally:
            stopped.set()
            for task in tasks:
                task.cancel()
