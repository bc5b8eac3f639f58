"""Promises of a GPU's streams that can be held without one: against a torch that hands out streams as CUDA's does."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, ClassVar

import pytest
import torch

from export.runtime import EngineError
from server.loop.device import stream as stream_module
from server.loop.device.stream import HIGH, TORCH_STREAMS, CudaStream
from server.loop.protocols import DeviceLost

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.cuda.Stream`: of each priority 32, in turn. `Graph` stands for CUDA's graphs."""
    turns = {0: count(), HIGH: count()}

    class Stream:
        def __init__(self, device: torch.device, priority: int = 0) -> None:
            self.priority = priority
            self.cuda_stream = 1000 * (1 - priority) + next(turns[priority]) % TORCH_STREAMS

        def wait_stream(self, other: object) -> None:
            pass

        def synchronize(self) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "stream", current)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", Graph.end_allocating, raising=False)
    monkeypatch.setattr(stream_module, "_in_use", set())
    Graph.capturing = Graph.invalid = False
    Graph.pools.clear()


_current: list[Any] = []


@contextmanager
def current(stream: Any) -> Iterator[None]:
    """`torch.cuda.stream`: the last one is where work goes."""
    _current.append(stream)
    try:
        yield
    finally:
        _current.pop()


class Graph:
    """As torch's: where CUDA has no graph to give, the end of a capture raises, and memory goes to the pool for good.

    capturing: whether one goes on. invalid: whether what is captured has done what cannot be. pools: that memory goes
    to.
    """

    capturing = invalid = False
    pools: ClassVar[set[tuple[int, int]]] = set()

    def capture_begin(self, pool: tuple[int, int], capture_error_mode: str) -> None:
        Graph.capturing = True
        Graph.pools.add(pool)
        self.pool = pool

    def capture_end(self) -> None:
        Graph.capturing = False
        if Graph.invalid:
            raise RuntimeError("operation failed due to a previous error during capture")
        Graph.pools.remove(self.pool)

    @staticmethod
    def end_allocating(device: int, pool: tuple[int, int]) -> None:
        if pool not in Graph.pools:
            raise RuntimeError("not recording")
        Graph.pools.remove(pool)


def test_no_model_captures_on_a_stream_that_is_in_use():
    """Neither on that of the steps, nor on another model's, of this or of another engine; torch hands them out again
    and again."""
    one, other = CudaStream(GPU), CudaStream(GPU)
    captures = [(one, other)[number % 2].captures() for number in range(TORCH_STREAMS - 4)]
    handles = {each._stream.cuda_stream for each in captures}
    assert len(handles) == TORCH_STREAMS - 4
    assert not handles & {stream.cuda_stream for stream in (one.steps, one._downloads, other.steps, other._downloads)}


def test_a_model_too_many_is_refused_and_one_that_goes_leaves_room():
    """With what the bound is; the model that was loaded last is the one that fails."""
    stream = CudaStream(GPU)
    captures = [stream.captures() for _ in range(TORCH_STREAMS - 2)]
    with pytest.raises(EngineError, match="cuda:0: all of torch's 32 streams are taken"):
        stream.captures()
    left = captures.pop(5)._stream.cuda_stream
    gc.collect()
    assert stream.captures()._stream.cuda_stream == left


def test_an_engine_that_goes_leaves_its_streams():
    """Else a process could only ever have so many, one after the other."""
    for _ in range(2 * TORCH_STREAMS):
        CudaStream(GPU)
        gc.collect()


def test_steps_are_captured_as_urgent_as_they_run_and_away_from_all_that_was_run_before():
    """Nodes of a graph keep the priority of the stream that they were captured on; and what torch keeps for a stream
    that ran before, a workspace, would lie outside of the graphs' pool."""
    stream = CudaStream(GPU)
    warm, captured = set(), set()

    def step() -> None:
        (captured if Graph.capturing else warm).add((_current[-1].priority, _current[-1].cuda_stream))

    captures = stream.captures()
    captures.capture(step)
    captures.capture(step)
    assert [priority for priority, _ in captured] == [HIGH]
    assert [priority for priority, _ in warm] == [0]


@pytest.mark.parametrize("raises", [True, False])
def test_a_capture_that_fails_leaves_nothing_behind(raises: bool):
    """It says what failed, and torch's memory goes where it went before, whether the step raised or CUDA gave up."""

    def step() -> None:
        Graph.invalid = Graph.capturing
        if Graph.capturing and raises:
            raise ValueError("the step waits for the device")

    error, message = (ValueError, "the step waits") if raises else (RuntimeError, "previous error")
    with pytest.raises(error, match=message):
        CudaStream(GPU).captures().capture(step)
    assert not Graph.pools


def test_a_step_that_raises_without_harm_to_the_capture_ends_it():
    """CUDA gives the graph so far, which is dropped."""

    def step() -> None:
        if Graph.capturing:
            raise ValueError("no such shape")

    with pytest.raises(ValueError, match="no such shape"):
        CudaStream(GPU).captures().capture(step)
    assert not Graph.pools
    assert not Graph.capturing


def test_too_little_memory_is_no_lost_device():
    """Of torch's errors of the device only those mean that it is lost which are not about memory."""
    error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(DeviceLost, match="illegal memory access"), stream_module._watching():
        raise error
    memory: Any = torch.AcceleratorError("CUDA error: out of memory")
    memory.error_code = 2
    with pytest.raises(torch.AcceleratorError, match="out of memory"), stream_module._watching():
        raise memory
