"""Engines on a device: networks that take and give torch tensors there, behind one protocol.

The NumPy engines of `export.runtime` are for the CPU; these are what a loop on a GPU calls. They enqueue work on
torch's current stream and share torch's memory, so that gather, network and fused update follow each other on the
device without the host in between.

`torch` runs the modules themselves, on any device; `onnxruntime` the exported graph in CUDA; `tensorrt` an engine built
from the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from models.bundle import Bundle

from . import DEVICE_ENGINES, EngineError

LARGEST_BATCH = 64


class DeviceSession(Protocol):
    """One network on a device, called from one thread at a time."""

    @property
    def name(self) -> str:
        """The network's name in its card."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the inputs that are registers or latents, and of outputs shaped like them.

        Scalars (the shape of a row is `()`: times, energies) are float32 and labels int64, always.
        """

    @property
    def channels_last(self) -> bool:
        """Whether 4-d inputs must be in torch's channels-last memory format; else they are contiguous.

        4-d outputs come in the same format.
        """

    @property
    def capturable(self) -> bool:
        """Whether `run` may be captured into a CUDA graph, once it has been run a few times at that number of rows."""

    def run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Enqueue the network for a batch on torch's current stream; waits for nothing and never touches the host.

        inputs: exactly the network's inputs by name, each `(rows, *shape)` on the device with the same rows >= 1.
        Returns: the outputs in the order of the specification, each `(rows, *shape)`, newly allocated (in the pool of
        the graph while capturing).
        """


class DeviceRuntime(Protocol):
    """An engine on one device."""

    @property
    def name(self) -> str:
        """One of `DEVICE_ENGINES`."""

    @property
    def device(self) -> torch.device:
        """Where tensors must be."""

    def load(self, bundle: Bundle, network: str) -> DeviceSession:
        """Make a network of a loaded bundle ready to run.

        Raises:
            EngineError: the bundle has no such network, or this engine cannot run it.
            BundleError: the torch engine does not know the architecture, or the weights do not fit it.
        """


def batch_buckets(largest: int) -> tuple[int, ...]:
    """The numbers of network rows that graphs are captured and engines built for: powers of two, to the largest batch.

    At least 1 and 2, as one guided row takes two.
    """
    buckets = [1, 2]
    while buckets[-1] < largest:
        buckets.append(min(largest, 2 * buckets[-1]))
    return tuple(buckets)


def open_device_runtime(
    name: str,
    device: torch.device,
    stream: torch.cuda.Stream | None = None,
    largest_batch: int = LARGEST_BATCH,
    *,
    deterministic: bool = False,
) -> DeviceRuntime:
    """Open an engine on a device by name.

    device: `cpu` or `cuda:N`; TensorRT needs CUDA. stream: torch's stream that the engine's work is enqueued on; ONNX
    Runtime is bound to it for good, the others follow torch's current one. largest_batch: rows that TensorRT's engines
    are built for, the others take any number. deterministic: the same inputs in a batch of one size are to give the
    same bytes, in every start; what TensorRT chooses is in the engine that it has built.

    Raises:
        EngineError: unknown name, a device that is not there or not the engine's, or a package is missing.
    """
    if name not in DEVICE_ENGINES:
        raise EngineError(f"unknown engine {name!r}; known: {', '.join(DEVICE_ENGINES)}")
    device = _checked(device)
    try:
        if name == "onnxruntime":
            from .onnxruntime_device import OnnxDeviceRuntime

            return OnnxDeviceRuntime(device, stream, deterministic)
        if name == "tensorrt":
            if device.type != "cuda":
                raise EngineError(f"engine {name!r} needs a CUDA device, got {device}")
            from .tensorrt import TensorRTRuntime

            return TensorRTRuntime(device, largest_batch)
    except ImportError as error:
        raise EngineError(f"engine {name!r} needs a package that is not installed: {error}") from error
    from .torch_device import TorchDeviceRuntime

    return TorchDeviceRuntime(device, deterministic)


def _checked(device: torch.device) -> torch.device:
    """The device with its index.

    Raises:
        EngineError: neither `cpu` nor a CUDA device of this machine.
    """
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise EngineError(f"device must be cpu or cuda:N, got {device}")
    if not torch.cuda.is_available():
        raise EngineError(f"device {device}: torch finds no CUDA device here")
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise EngineError(f"device {device}: there are {torch.cuda.device_count()}, numbered from 0")
    return torch.device("cuda", index)
