"""Where steps run and how the host talks to it: a GPU's streams, or this thread on the CPU. No call but `Mark.wait`
waits for the device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

from export.runtime import EngineError

from ..protocols import DeviceLost

HIGH = -1
"""torch's word for the higher of its two priorities."""

TORCH_STREAMS = 32
"""Of one device and priority (torch's `c10/cuda/CUDAStream.h`)."""

CUDA_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation

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

    Steps are captured on other streams, by the thread that loads a model, while the engine's thread replays others;
    what is run before a capture has less priority than they.
    """

    def __init__(self, device: torch.device) -> None:
        """
        Raises:
            EngineError: torch has no stream left.
        """
        self.device = device
        self.steps = _own_stream(device, self)
        self._downloads = _own_stream(device, self)
        self._warm_ups = torch.cuda.Stream(device)

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
        """
        Raises:
            EngineError: torch has no stream left.
        """
        return CudaCaptures(self.device, self._warm_ups, self.steps)


_in_use: set[tuple[torch.device, int]] = set()
"""Devices and handles of this process's streams of high priority that nobody else may have."""


def _own_stream(device: torch.device, owner: object) -> torch.cuda.Stream:
    """A stream of high priority that nobody else has, torch handing out its 32 over and over; free when its owner goes.

    Raises:
        EngineError: there is none.
    """
    for _ in range(TORCH_STREAMS):
        stream = torch.cuda.Stream(device, priority=HIGH)
        key = device, stream.cuda_stream
        if key not in _in_use:
            _in_use.add(key)
            weakref.finalize(owner, _in_use.discard, key)
            return stream
    raise EngineError(
        f"{device}: all of torch's {TORCH_STREAMS} streams are taken, by one loaded model each and two more"
    )


class CudaCaptures:
    """A stream and a memory pool for the graphs of one model; the graphs keep it.

    The stream has the priority that the steps are to have: a graph's nodes keep that of their capture. Nothing else
    runs on it: captured products write to a workspace that torch keeps for the stream, and which so lies in the graphs'
    own pool, where it stays whatever torch forgets or gives back (`torch.compile` makes it forget all of them). Neither
    is shared with other models: the workspace goes when a graph of that stream goes, and a pool whose last graph has
    gone takes no new one.
    """

    def __init__(self, device: torch.device, warm_ups: torch.cuda.Stream, steps: torch.cuda.Stream) -> None:
        """
        Raises:
            EngineError: torch has no stream left.
        """
        self._device, self._warm_ups, self._steps = device, warm_ups, steps
        self._stream = _own_stream(device, self)
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """See `Captures.capture`."""
        self._warm_ups.wait_stream(self._steps)
        with torch.cuda.stream(self._warm_ups):
            for _ in range(WARM_UPS):
                function()
        self._warm_ups.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Not `torch.cuda.graph`: it waits for the whole device and gives all unused memory back, at each capture, while
        # other models are served.
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                function()
            except BaseException:
                with suppress(RuntimeError):  # it says that the capture is lost, and not what lost it
                    self._end(graph)
                raise
            self._end(graph)

        def replay(graph: torch.cuda.CUDAGraph = graph, kept: CudaCaptures = self) -> None:
            graph.replay()

        return replay

    def _end(self, graph: torch.cuda.CUDAGraph) -> None:
        """End a capture. Where that fails, torch would go on as if it captured: recycle no memory that two streams use,
        and fail when it gives some back."""
        try:
            graph.capture_end()
        except RuntimeError:
            with suppress(RuntimeError):  # torch had come that far by itself
                torch._C._cuda_endAllocateToPool(self._device.index or 0, self._pool)
            raise


@contextmanager
def _watching() -> Iterator[None]:
    """An error of the device itself, unlike too little memory, leaves this process without it."""
    try:
        yield
    except torch.AcceleratorError as error:
        if out_of_memory(error):
            raise
        raise DeviceLost(f"the device is lost: {error}") from error


def out_of_memory(error: torch.AcceleratorError) -> bool:
    """Whether it tells of too little memory, of which torch's own allocator is not the only one to run out."""
    return getattr(error, "error_code", None) == CUDA_OUT_OF_MEMORY
