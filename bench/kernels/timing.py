"""How long one of many equal calls takes, on a GPU by CUDA events and on the CPU by the clock."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from time import perf_counter

import torch

Call = Callable[[], object]

WARM_UP = 3
REPLAYS = 20
CAPTURED = 3e-3
"""Seconds that a graph is to take, so that what a replay needs to begin does not count."""
GUESSED_BANDWIDTH = 2e12
"""Bytes a second, to guess how many calls take that long."""
MOST_CALLS = 256
CPU_SECONDS = 0.3
"""Seconds for which a call is repeated on the CPU, and at least `CPU_ROUNDS` times."""
CPU_ROUNDS = 5


def sets_of_inputs(device: torch.device, footprint: int) -> int:
    """How many sets of inputs to go through in turn, so that none is in the caches still when its turn comes again.

    footprint: bytes that a call touches.
    """
    if device.type != "cuda":
        return 2
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(2, min(128, -(-4 * cache // footprint)))


def seconds_a_call(calls: Sequence[Call], device: torch.device, footprint: int) -> float:
    """The time of one call; `calls` are the same work on different inputs, done in turn.

    On the CPU the shortest: what else the machine does can only add to it. On a GPU the median; there all are captured
    in one CUDA graph, for every contender: what counts is the device's time, and neither Python's nor the driver's.
    Eager torch, which usually waits for these, looks better that way than it is.

    Raises:
        RuntimeError: torch's, where a call fails, does not compile or cannot be captured.
    """
    if device.type != "cuda":
        return _on_host(calls)
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                for call in calls:
                    call()
        torch.cuda.current_stream().wait_stream(stream)
        wanted = int(CAPTURED * GUESSED_BANDWIDTH / footprint)
        passes = max(1, min(wanted, MOST_CALLS) // len(calls))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(passes):
                for call in calls:
                    call()
        seconds = []
        for _ in range(REPLAYS):
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            graph.replay()
            ended.record()
            ended.synchronize()
            seconds.append(began.elapsed_time(ended) / 1000.0)
        graph.reset()
    return statistics.median(seconds) / (passes * len(calls))


def _on_host(calls: Sequence[Call]) -> float:
    for call in calls:
        call()
    seconds: list[float] = []
    began = perf_counter()
    while len(seconds) < CPU_ROUNDS * len(calls) or perf_counter() - began < CPU_SECONDS:
        for call in calls:
            start = perf_counter()
            call()
            seconds.append(perf_counter() - start)
    return min(seconds)
