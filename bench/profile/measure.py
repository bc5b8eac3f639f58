"""One client's calls, one after the other, to several servers in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import grpc
import numpy as np
import numpy.typing as npt

from export.runtime.onnxruntime import OnnxRuntime
from models.bundle import Bundle
from protos import fewstep_pb2 as pb
from protos import fewstep_pb2_grpc as rpc

from . import floor

Seconds = npt.NDArray[np.float64]
WARM_UP = 50
TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class Timed:
    """A call: when it began and ended, on the machine's clock, and the seconds of it that the engine had."""

    began: float
    ended: float
    engine: float

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @property
    def added(self) -> float:
        """What is not the engine's own time."""
        return self.seconds - self.engine


Ask = Callable[[], Timed]


def ask_server(channel: grpc.Channel, request: pb.SampleRequest) -> Ask:
    """Calls of a fewstep server."""
    sample = rpc.SamplerStub(channel).Sample

    def ask() -> Timed:
        began = perf_counter()
        answer = sample(request, timeout=TIMEOUT)
        return Timed(began, perf_counter(), answer.timing.network_seconds)

    return ask


def ask_floor(channel: grpc.Channel, request: bytes) -> Ask:
    """Calls of a `floor`."""
    call = channel.unary_unary(floor.METHOD, bytes, bytes)

    def ask() -> Timed:
        began = perf_counter()
        answer = call(request, timeout=TIMEOUT)
        return Timed(began, perf_counter(), *floor.SECONDS.unpack(answer))

    return ask


def ask_engine(bundle: Bundle, network: str, runs: int, threads: int) -> Ask:
    """The bare engine, in this process: the network so many times with one row."""
    session = OnnxRuntime(threads).load(bundle, network)
    inputs = {spec.name: np.zeros((1, *spec.shape), dtype=spec.dtype) for spec in bundle.card.networks[network].inputs}

    def ask() -> Timed:
        began = perf_counter()
        for _ in range(runs):
            session.run(inputs)
        ended = perf_counter()
        return Timed(began, ended, ended - began)

    return ask


def in_turns(
    asks: Sequence[Ask],
    requests: int,
    rounds: int,
    pause: float,
    progress: Callable[[], None] = lambda: None,
) -> list[list[Timed]]:
    """Ask each so many times, in rounds, so that a slow spell of the machine is everybody's.

    pause: seconds before each call. The first `WARM_UP` calls of each and the first of a round are not returned, as
    those before them were of another server.
    """
    found: list[list[Timed]] = [[] for _ in asks]
    for ask in asks:
        for _ in range(WARM_UP):
            ask()
    for round_ in range(rounds):
        count = requests * (round_ + 1) // rounds - requests * round_ // rounds
        for ask, timed in zip(asks, found, strict=True):
            for index in range(count + 1):
                if pause:
                    time.sleep(pause)
                call = ask()
                if index:
                    timed.append(call)
            progress()
    return found


def cpu_seconds(pid: int) -> dict[str, float]:
    """CPU seconds of each thread of a process so far, by its id and name; empty where the system does not tell."""
    found = {}
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            name, nanoseconds = (task / "comm").read_text().strip(), int((task / "schedstat").read_text().split()[0])
        except (OSError, ValueError, IndexError):
            continue
        found[f"{task.name} {name}"] = nanoseconds / 1e9
    return found
