"""Where steps run and how the host talks to it: a GPU's streams, or this thread on the CPU. No call but `Mark.wait`
waits for the device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

from ..protocols import DeviceLost

WARM_UPS = 3  # runs before a capture, in which libraries choose their algorithms and make their workspaces


class Mark(Protocol):
    """A point in the device's work."""

    def wait(self) -> None:
        """Return when all work before it is done.

        Raises:
            DeviceLost: see there.
        """

    def seconds_since(self, earlier: Mark) -> float:
        """Device time between two marks that have passed."""


class Captures(Protocol):
    """Where one model's steps are captured."""

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """What does the same as `function`, on the same tensors, in one launch.

        function: must not wait for the device; it is run a few times first.
        """


class Stream(Protocol):
    """Work runs in the order in which it is given."""

    device: torch.device

    def active(self) -> AbstractContextManager[object]:
        """Work given inside goes here."""

    def watched(self) -> AbstractContextManager[object]:
        """As `active`; what says that the device is lost becomes DeviceLost."""

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

    def captures(self) -> Captures | None:
        """For one model; None where there are no graphs, and batches need no padding to the sizes of some."""


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

    def active(self) -> AbstractContextManager[object]:
        return nullcontext()

    def watched(self) -> AbstractContextManager[object]:
        return nullcontext()

    def host_buffer(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def upload(self, source: Tensor, target: Tensor) -> None:
        target.copy_(source)

    def download(self, source: Tensor, *, aside: bool = False) -> Tensor:
        return source.clone()

    def mark(self, *, aside: bool = False) -> Mark:
        return _Now()

    def captures(self) -> Captures | None:
        return None


class _CudaMark:
    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event

    def wait(self) -> None:
        with _watching():
            self.event.synchronize()

    def seconds_since(self, earlier: Mark) -> float:
        return earlier.event.elapsed_time(self.event) / 1000.0 if isinstance(earlier, _CudaMark) else 0.0


class CudaStream:
    """A GPU: one stream for the steps, and one for what the host gets, so that no step waits for a download.

    Steps are captured on other streams, by the thread that loads a model, while the engine's thread replays others.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.steps = torch.cuda.Stream(device)
        self._downloads = torch.cuda.Stream(device)
        self._unused: list[torch.cuda.Stream] = []  # to capture on

    def active(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self.steps)

    @contextmanager
    def watched(self) -> Iterator[None]:
        with _watching(), self.active():
            yield

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

    def captures(self) -> CudaCaptures:
        stream = self._unused.pop() if self._unused else torch.cuda.Stream(self.device)
        captures = CudaCaptures(stream, self.steps)
        weakref.finalize(captures, self._unused.append, stream)
        return captures


class CudaCaptures:
    """A stream and a memory pool for the graphs of one model; the graphs keep it.

    Not shared with other models: captured products write to a workspace that belongs to the stream of the capture,
    which torch clears when a graph of that stream goes, and which warm-ups there would write to beside live replays;
    and a pool whose last graph has gone takes no new one.
    """

    def __init__(self, stream: torch.cuda.Stream, steps: torch.cuda.Stream) -> None:
        self._stream, self._steps = stream, steps
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """See `Captures.capture`."""
        self._stream.wait_stream(self._steps)
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                function()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            function()
        self._steps.wait_stream(self._stream)

        def replay(graph: torch.cuda.CUDAGraph = graph, kept: CudaCaptures = self) -> None:
            graph.replay()

        return replay


@contextmanager
def _watching() -> Iterator[None]:
    """An error of the device itself, unlike too little memory, leaves this process without it."""
    try:
        yield
    except torch.AcceleratorError as error:
        raise DeviceLost(f"the device is lost: {error}") from error
