"""Promises of a GPU's streams that can be held without one: against a torch that hands out streams as CUDA's does."""

from __future__ import annotations

import gc
from itertools import count
from typing import Any

import pytest
import torch

from export.runtime import EngineError
from server.loop.device import stream as stream_module
from server.loop.device.stream import HIGH, TORCH_STREAMS, CudaStream
from server.loop.protocols import DeviceLost

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.cuda.Stream`: of each priority 32, in turn."""
    turns = {0: count(), HIGH: count()}

    class Stream:
        def __init__(self, device: torch.device, priority: int = 0) -> None:
            self.priority = priority
            self.cuda_stream = 1000 * (1 - priority) + next(turns[priority]) % TORCH_STREAMS

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(stream_module, "_capturing", set())


def test_no_model_captures_on_a_stream_that_is_in_use():
    """Neither on that of the steps, nor on another model's, of this or of another engine; torch hands them out again
    and again."""
    one, other = CudaStream(GPU), CudaStream(GPU)
    captures = [(one, other)[number % 2].captures() for number in range(TORCH_STREAMS)]
    handles = {each._stream.cuda_stream for each in captures}
    assert len(handles) == TORCH_STREAMS
    assert not handles & {stream.cuda_stream for stream in (one.steps, one._downloads, other.steps, other._downloads)}


def test_a_model_too_many_is_refused_and_one_that_goes_leaves_room():
    """With what the bound is; the model that was loaded last is the one that fails."""
    stream = CudaStream(GPU)
    captures = [stream.captures() for _ in range(TORCH_STREAMS)]
    with pytest.raises(EngineError, match="cuda:0: 32 models are loaded"):
        stream.captures()
    left = captures.pop(5)._stream.cuda_stream
    gc.collect()
    assert stream.captures()._stream.cuda_stream == left


def test_too_little_memory_is_no_lost_device():
    """Of torch's errors of the device only those mean that it is lost which are not about memory."""
    error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(DeviceLost, match="illegal memory access"), stream_module._watching():
        raise error
    memory: Any = torch.AcceleratorError("CUDA error: out of memory")
    memory.error_code = 2
    with pytest.raises(torch.AcceleratorError, match="out of memory"), stream_module._watching():
        raise memory
