"""Requests whose answers tell what they cost: some clients, each of which asks again when its answer has come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import grpc
import grpc.aio

from protos import fewstep_pb2 as pb
from protos import fewstep_pb2_grpc as rpc

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


def probe(address: str, pid: int, message: pb.SampleRequest | pb.ScoreRequest, clients: int, seconds: float) -> Probes:
    """Send one message again and again from some clients, for so long and at least five times each.

    pid: of the server, whose main thread runs the handlers.

    Raises:
        OSError: the system does not tell a thread's CPU time (Linux does).
    """
    return asyncio.run(_probe(address, pid, message, clients, seconds))


async def _probe(
    address: str, pid: int, message: pb.SampleRequest | pb.ScoreRequest, clients: int, seconds: float
) -> Probes:
    requests: list[Probed] = []
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        method = (
            rpc.SamplerStub(channel).Sample if isinstance(message, pb.SampleRequest) else rpc.ScorerStub(channel).Score
        )
        await method(message, timeout=CALL_SECONDS)  # the connection is made, and the program compiled
        host, started = _cpu_seconds(pid), time.perf_counter()

        async def client() -> None:
            sent = 0
            while sent < 5 or time.perf_counter() - started < seconds:
                begin = time.perf_counter()
                answer = await method(message, timeout=CALL_SECONDS)
                latency, timing = time.perf_counter() - begin, answer.timing
                requests.append(
                    Probed(
                        *(latency, timing.queue_seconds, timing.compute_seconds),
                        *(timing.total_seconds, timing.mean_batch_rows),
                    )
                )
                sent += 1

        await asyncio.gather(*(client() for _ in range(clients)))
        return Probes(requests, time.perf_counter() - started, _cpu_seconds(pid) - host)


def _cpu_seconds(pid: int) -> float:
    """CPU time of a process's main thread so far."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9
