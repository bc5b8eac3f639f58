"""Requests whose answers tell what they cost: some clients, each of which asks again when its answer has come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..mix import Kind
from ..sender import Outcome, send_in_turns
from ..targets import CallFailed, NativeTarget, TargetError

CALL_SECONDS = 60.0


class Probed(NamedTuple):
    """What one request took, in seconds. latency: as the client saw it; the rest as the server told.

    compute: of all batches that it was in. batch_rows: network rows in them, on average.
    """

    latency: float
    queue: float
    compute: float
    server: float
    batch_rows: float


class Probes(NamedTuple):
    """Requests of one sort. seconds: from the first to the last answer. host: CPU seconds of the handlers' thread."""

    requests: Sequence[Probed]
    seconds: float
    host: float


def probe(address: str, pid: int, kind: Kind, clients: int, seconds: float) -> Probes:
    """Send one kind of request again and again from some clients, for so long.

    pid: of the server, whose main thread runs the handlers.

    Raises:
        TargetError: the server does not answer, or refuses the request.
        OSError: the system does not tell a thread's CPU time (Linux does).
    """
    return asyncio.run(_probe(address, pid, kind, clients, seconds))


async def _probe(address: str, pid: int, kind: Kind, clients: int, seconds: float) -> Probes:
    async with NativeTarget(address) as target:
        (known,) = await target.prepare([kind])
        message = target.message(known, seed=0)
        try:
            await target.call(message, within=CALL_SECONDS)  # compiles the program, and warms up its batch size
        except CallFailed as failed:
            raise TargetError(f"{address}: {kind.name} ended {failed.code}") from failed
        host, started = _cpu_seconds(pid), time.perf_counter()
        outcomes = await send_in_turns(
            *(target, [message], [0]), clients=clients, think=0.0, seconds=seconds, timeouts=[CALL_SECONDS]
        )
        took, host = time.perf_counter() - started, _cpu_seconds(pid) - host
    answered = [_probed(outcome) for outcome in outcomes if outcome.ok]
    if not answered:
        raise TargetError(f"{address}: no {kind.name} of {len(outcomes)} was answered")
    return Probes(answered, took, host)


def _probed(outcome: Outcome) -> Probed:
    told = outcome.answer
    return Probed(
        *(outcome.service, told.queue_seconds, told.compute_seconds, told.server_seconds, told.mean_batch_rows)
    )


def _cpu_seconds(pid: int) -> float:
    """CPU time of a process's main thread so far."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9
