"""Engines: what runs the networks of a bundle.

ONNX Runtime on the CPU, the default, takes NumPy arrays (`export.runtime.onnxruntime`) and needs no torch. All others
take torch tensors on a device (`export.runtime.device`). Each is imported when it is opened, so that serving with one
needs no other one, and never an exporter.
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
    """An engine that takes NumPy arrays, with its settings."""

    @property
    def name(self) -> str:
        """Of the engine, as `--engine` names it."""

    def load(self, bundle: Bundle, network: str) -> Session:
        """Make a network of a loaded bundle ready to run.

        Raises:
            EngineError: the bundle has no such network, or its file cannot be run.
        """
