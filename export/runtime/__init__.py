"""Engines: what runs the networks of a bundle, behind one protocol.

`onnxruntime` (the default) runs the exported graphs; `torch` runs the modules that they were traced
from. Each is imported when it is opened, so that serving with one needs no other one, and never an
exporter, torch or diffusers for the default. Those here take NumPy arrays and run on the CPU; those of
`export.runtime.device` take tensors on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from models.bundle import Bundle

Array = npt.NDArray[Any]

DEFAULT_ENGINE = "onnxruntime"
ENGINES = (DEFAULT_ENGINE, "torch")
DEVICE_ENGINES = ("torch", "onnxruntime", "tensorrt")
"""Engines of `export.runtime.device`."""


class EngineError(ValueError):
    """An engine that does not exist here, or a network that it cannot run; the message says which."""


class Session(Protocol):
    """One network on the CPU, called from one thread at a time."""

    @property
    def name(self) -> str:
        """The network's name in its card."""

    def run(self, inputs: Mapping[str, Array]) -> tuple[npt.NDArray[np.float32], ...]:
        """Run the network once for a batch.

        inputs: exactly the network's inputs by name, contiguous, float32 or int64 as in its
        specification, each `(rows, *shape)` with the same rows >= 1.
        Returns: the outputs in the order of the specification, each `(rows, *shape)` float32.
        They belong to the caller: no later run writes into them.
        """


class Runtime(Protocol):
    """An engine with its settings."""

    @property
    def name(self) -> str:
        """One of `ENGINES`."""

    def load(self, bundle: Bundle, network: str) -> Session:
        """Make a network of a loaded bundle ready to run.

        Raises:
            EngineError: the bundle has no such network, or its file cannot be run.
            BundleError: the torch engine does not know the architecture, or the weights do not fit it.
        """


def open_runtime(name: str, threads: int) -> Runtime:
    """Open an engine by name.

    threads: how many threads one network may use at a time, the calling one included.

    Raises:
        EngineError: unknown name, threads below 1, or a package is missing.
    """
    if threads < 1:
        raise EngineError(f"threads must be at least 1, got {threads}")
    try:
        if name == "onnxruntime":
            from .onnxruntime import OnnxRuntime

            return OnnxRuntime(threads)
        if name == "torch":
            from .torch import TorchRuntime

            return TorchRuntime(threads)
    except ImportError as error:
        raise EngineError(f"engine {name!r} needs a package that is not installed: {error}") from error
    raise EngineError(f"unknown engine {name!r}; known: {', '.join(ENGINES)}")
