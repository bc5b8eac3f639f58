"""The TensorRT engine: engines built from a bundle's graphs (`export.to_tensorrt`), on torch's memory and stream.

There is one execution context for each number of rows. One that was captured in a graph belongs to it from then on and
is given neither other shapes nor other addresses, as NVIDIA asks: the next run gets another one.
All contexts of a network share one piece of torch's memory for their activations: they run one after the other.

**Never run on TensorRT yet**, see `export.to_tensorrt`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorrt as trt
import torch
from torch import Tensor

from models.bundle import Bundle
from models.card import NetworkSpec

from .. import to_tensorrt
from . import EngineError, gpu
from .addresses import checked_inputs, new_outputs

TYPES = {"float32": trt.DataType.FLOAT, "int64": trt.DataType.INT64}


class TensorRTSession:
    """See `DeviceSession`. Engines take and give float32, whatever they compute in (`export.precision`)."""

    dtype = torch.float32
    channels_last = False
    capturable = True

    def __init__(
        self, name: str, spec: NetworkSpec, engine: trt.ICudaEngine, device: torch.device, logger: to_tensorrt.Logger
    ) -> None:
        self.name = name
        self._spec, self._engine, self._device, self._logger = spec, engine, device, logger
        self._names = [tensor.name for tensor in (*spec.inputs, *spec.outputs)]
        self._largest = [
            engine.get_tensor_profile_shape(spec.inputs[0].name, index)[2][0]
            for index in range(engine.num_optimization_profiles)
        ]
        sizes = [engine.get_device_memory_size_for_profile_v2(index) for index in range(len(self._largest))]
        self._memory = torch.empty(max(*sizes, 1), dtype=torch.uint8, device=device)
        self._contexts: dict[int, Any] = {}
        self._captured: list[Any] = []  # as long as the graphs may be replayed

    def run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """See `DeviceSession.run`.

        Raises:
            EngineError: inputs that are not as the specification says, more rows than the engine was built for, or
                TensorRT refuses them.
        """
        given = checked_inputs(self._spec, inputs, self._device)
        outputs = new_outputs(self._spec, given, self._device)
        stream = gpu.current_stream(self._device)
        context = self._context(len(given[0]), stream)
        for name, value in zip(self._names, (*given, *outputs), strict=True):
            self._hold(context.set_tensor_address(name, value.data_ptr()), "an address")
        self._hold(context.execute_async_v3(stream), "to run")
        if gpu.capturing(self._device):
            self._captured.append(self._contexts.pop(len(given[0])))
        return outputs

    def _context(self, rows: int, stream: int) -> Any:
        """The context for a number of rows; the first call makes it, which must be before a capture."""
        context = self._contexts.get(rows)
        if context is not None:
            return context
        if gpu.capturing(self._device):
            raise EngineError(f"network {self.name!r} has to run with {rows} rows before each capture, and once in it")
        profile = next((index for index, largest in enumerate(self._largest) if rows <= largest), None)
        if profile is None:
            raise EngineError(f"network {self.name!r} got {rows} rows, its engine was built for {self._largest[-1]}")
        with gpu.selected(self._device):
            context = self._engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self._hold(context is not None, "an execution context")
        context.set_device_memory(self._memory.data_ptr(), self._memory.numel())
        self._hold(context.set_optimization_profile_async(profile, stream), "a profile")
        for tensor in self._spec.inputs:
            self._hold(context.set_input_shape(tensor.name, (rows, *tensor.shape)), "a shape")
        self._hold(not context.infer_shapes(), "the shapes")
        self._contexts[rows] = context
        return context

    def _hold(self, done: bool, what: str) -> None:
        if not done:
            raise EngineError(f"network {self.name!r}: TensorRT refuses {what}: {self._logger.last_error}")


class TensorRTRuntime:
    """TensorRT on one GPU, for batches of up to `largest` rows."""

    name = "tensorrt"

    def __init__(self, device: torch.device, largest: int) -> None:
        self.device = device
        self._largest = largest
        self._logger = to_tensorrt.Logger()

    def load(self, bundle: Bundle, network: str) -> TensorRTSession:
        """See `DeviceRuntime.load`. Builds the engine where there is none for this GPU, which takes minutes."""
        engine = to_tensorrt.load_or_build(bundle, network, self.device, self._largest, self._logger)
        spec = bundle.card.networks[network]
        expected = {tensor.name: (trt.TensorIOMode.INPUT, TYPES[tensor.dtype]) for tensor in spec.inputs}
        expected |= {tensor.name: (trt.TensorIOMode.OUTPUT, TYPES[tensor.dtype]) for tensor in spec.outputs}
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        found = {name: (engine.get_tensor_mode(name), engine.get_tensor_dtype(name)) for name in names}
        if found != expected:
            raise EngineError(f"{bundle.graph_path(network)}: the engine has {found}, the card says {expected}")
        return TensorRTSession(network, spec, engine, self.device, self._logger)
