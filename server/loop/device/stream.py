"""Where steps run and how the host talks to it: a GPU's streams, or this thread on the CPU. No call but `Mark.wait`
waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

WARM_UPS = 3  # runs before a capture, in which libraries choose their algorithms and make their workspaces


class Mark(Protocol):
    """A point in the device's work."""

    def wait(self) -> None:
        """Return when all work before it is done."""

    def seconds_since(self, earlier: Mark) -> float:
        """Device time between two marks that have passed."""


class Stream(Protocol):
    """Work runs in the order in which it is given."""

    device: torch.device
    captures: bool
    """Whether `capture` gives one launch, so that batches are padded to the sizes that were captured."""

    def active(self) -> AbstractContextManager[object]:
        """Work given inside goes here."""

    def host_buffer(self, size: int) -> Tensor:
        """Memory of the host, uint8 `(size,)`, that can be copied from and to while the host goes on."""

    def upload(self, source: Tensor, target: Tensor) -> None:
        """Copy from the host's memory; `source` may be dropped at once."""

    def download(self, source: Tensor, *, aside: bool = False) -> Tensor:
        """Copy to the host's memory; the result may be read once a later mark has passed.

        aside: beside the work that is given next, which must not write to `source`; its mark is one that is aside, too.
        """

    def mark(self, *, aside: bool = False) -> Mark:
        """A mark behind all work given so far, or behind the downloads that go on beside it."""

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """What does the same as `function`, on the same tensors, in one launch where the device has that.

        function: must not wait for the device; it is run a few times first.
        """


class _Now:
    def __init__(self) -> None:
        self.at = perf_counter()

    def wait(self) -> None:
        pass

    def seconds_since(self, earlier: Mark) -> float:
        return self.at - earlier.at if isinstance(earlier, _Now) else 0.0


class HostStream:
    """The CPU: everything is done when the call returns."""

    device = torch.device("cpu")
    captures = False

    def active(self) -> AbstractContextManager[object]:
        return nullcontext()

    def host_buffer(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def upload(self, source: Tensor, target: Tensor) -> None:
        target.copy_(source)

    def download(self, source: Tensor, *, aside: bool = False) -> Tensor:
        return source.clone()

    def mark(self, *, aside: bool = False) -> Mark:
        return _Now()

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        return function


class _CudaMark:
    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event

    def wait(self) -> None:
        self.event.synchronize()

    def seconds_since(self, earlier: Mark) -> float:
        return earlier.event.elapsed_time(self.event) / 1000.0 if isinstance(earlier, _CudaMark) else 0.0


class CudaStream:
    """A GPU: one stream for the steps, and one for what the host gets, so that no step waits for a download.

    All graphs share one memory pool, as they run one after the other. They are captured on a stream of their own, by
    the thread that loads a model, while the engine's thread replays others.
    """

    captures = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.steps = torch.cuda.Stream(device)
        self._downloads = torch.cuda.Stream(device)
        self._captures = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def active(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self.steps)

    def host_buffer(self, size: int) -> Tensor:
        # From torch's cache of pinned memory, which keeps a freed buffer until the copies that use it are done.
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def upload(self, source: Tensor, target: Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def download(self, source: Tensor, *, aside: bool = False) -> Tensor:
        stream = self._downloads if aside else self.steps
        if aside:
            stream.wait_stream(self.steps)
            source.record_stream(stream)
        with torch.cuda.stream(stream):
            target = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
            target.copy_(source, non_blocking=True)
        return target

    def mark(self, *, aside: bool = False) -> Mark:
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._downloads if aside else self.steps)
        return _CudaMark(event)

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        self._captures.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._captures):
            for _ in range(WARM_UPS):
                function()
        self._captures.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._captures, capture_error_mode="thread_local"):
            function()
        self.steps.wait_stream(self._captures)
        replay: Callable[[], None] = graph.replay
        return replay
