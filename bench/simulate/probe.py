"""Requests whose answers tell what they cost: some clients, each of which asks again when its answer has come."""

from __future__ import annotations

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

    compute: of all batches that it was in. batch_rows: network rows in them, on average. ended: on `perf_counter`.
    """

    latency: float
    queue: float
    compute: float
    server: float
    batch_rows: float
    ended: float = 0.0


class Probes(NamedTuple):
    """Requests of one sort. seconds: from the first to the last answer. host: CPU seconds of the handlers' thread."""

    requests: Sequence[Probed]
    seconds: float
    host: float


async def probe(target: NativeTarget, pid: int, kind: Kind, clients: int, seconds: float) -> Probes:
    """Send one kind of request to a connected server again and again from some clients, for so long.

    pid: of the server, whose main thread runs the handlers.

    Raises:
        TargetError: the server refuses the request.
        OSError: the system does not tell a thread's CPU time (Linux does).
    """
    (known,) = await target.prepare([kind])
    message = target.message(known, seed=0)
    try:
        await target.call(message, within=CALL_SECONDS)  # compiles the program, and warms up its batch size
    except CallFailed as failed:
        raise TargetError(f"{target.address}: {kind.name} ended {failed.code}") from failed
    host, started = _cpu_seconds(pid), time.perf_counter()
    outcomes = await send_in_turns(
        *(target, [message], [0]), clients=clients, think=0.0, seconds=seconds, timeouts=[CALL_SECONDS]
    )
    took, host = time.perf_counter() - started, _cpu_seconds(pid) - host
    answered = [_probed(outcome, started) for outcome in outcomes if outcome.ok]
    if not answered:
        raise TargetError(f"{target.address}: no {kind.name} of {len(outcomes)} was answered")
    return Probes(answered, took, host)


def _probed(outcome: Outcome, started: float) -> Probed:
    told = outcome.answer
    return Probed(
        *(outcome.service, told.queue_seconds, told.compute_seconds, told.server_seconds, told.mean_batch_rows),
        ended=started + outcome.scheduled + outcome.latency,
    )


def _cpu_seconds(pid: int) -> float:
    """CPU time of a process's main thread so far."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9
