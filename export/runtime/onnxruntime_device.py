"""ONNX Runtime on a device: the exported graph on torch's memory and torch's stream.

Inputs and outputs are bound by their addresses, so nothing is copied, and a run returns when its work is enqueued. The
provider's CUDA graphs are not used: they would hold the addresses of one run, and torch cannot capture another
library's allocations (`capturable` is False).

On the CPU the same binding runs with the CPU provider.

Not run on a GPU yet; the binding is tested on the CPU, the CUDA settings against a fake that holds the documented ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from models.bundle import Bundle
from models.card import NetworkSpec

from . import EngineError
from .addresses import checked_inputs, new_outputs
from .onnxruntime import CPU, Providers, check_cpu_runs, cpu_options, open_graph, read_graph

CUDA = "CUDAExecutionProvider"
TYPES = {"float32": np.float32, "int64": np.int64}


class OnnxDeviceSession:
    """See `DeviceSession`. Graphs take and give float32, whatever they compute in (`export.precision`)."""

    dtype = torch.float32
    channels_last = False
    capturable = False

    def __init__(
        self,
        name: str,
        spec: NetworkSpec,
        session: onnxruntime.InferenceSession,
        beside: Mapping[str, bytes],
        device: torch.device,
        stream: torch.cuda.Stream | None,
    ) -> None:
        """beside: the weights that the session reads where they are. stream: the session's, on CUDA."""
        self.name = name
        self._spec, self._session, self._beside = spec, session, beside
        self._device, self._stream = device, stream
        self._binding = session.io_binding()
        self._options = onnxruntime.RunOptions()
        # Else a run ends by waiting for the stream.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """See `DeviceSession.run`.

        Raises:
            EngineError: inputs that are not as the specification says, or torch's current stream is not the session's.
        """
        if self._stream is not None and torch.cuda.current_stream(self._device) != self._stream:
            raise EngineError(f"network {self.name!r} was loaded for another stream than torch's current one")
        given = checked_inputs(self._spec, inputs, self._device)
        outputs = new_outputs(self._spec, given, self._device)
        for tensor, value in zip(self._spec.inputs, given, strict=True):
            self._binding.bind_input(tensor.name, *self._place, TYPES[tensor.dtype], value.shape, value.data_ptr())
        for tensor, value in zip(self._spec.outputs, outputs, strict=True):
            self._binding.bind_output(tensor.name, *self._place, np.float32, value.shape, value.data_ptr())
        self._session.run_with_iobinding(self._binding, self._options)
        return outputs

    @property
    def _place(self) -> tuple[str, int]:
        return self._device.type, self._device.index or 0


class OnnxDeviceRuntime:
    """ONNX Runtime with the CUDA provider on one stream, or with the CPU provider."""

    name = "onnxruntime"

    def __init__(self, device: torch.device, stream: torch.cuda.Stream | None, deterministic: bool = False) -> None:
        """deterministic: see `open_device_runtime`.

        Raises:
            EngineError: this ONNX Runtime has no CUDA, or the stream is the default one, which it cannot be bound to.
        """
        self.device = device
        self._deterministic = deterministic
        self._stream = None
        if device.type == "cuda":
            if CUDA not in onnxruntime.get_available_providers():
                raise EngineError("the installed ONNX Runtime has no CUDA; the package onnxruntime-gpu has")
            self._stream = stream or torch.cuda.current_stream(device)
            if self._stream.cuda_stream == 0:
                # Handle 0 means "no stream given" to ONNX Runtime: it would make one of its own, beside torch's.
                raise EngineError(f"engine {self.name!r} needs a stream of its own on {device}, not the default one")

    def load(self, bundle: Bundle, network: str) -> OnnxDeviceSession:
        """See `DeviceRuntime.load`."""
        graph, weights = read_graph(bundle, network)
        spec, origin = bundle.card.networks[network], bundle.graph_path(network)
        cuda = self.device.type == "cuda"
        if not cuda:
            check_cpu_runs(bundle, network)
        options = onnxruntime.SessionOptions() if cuda else cpu_options(torch.get_num_threads())
        options.use_deterministic_compute = self._deterministic
        try:
            session = open_graph(spec, graph, options, self._providers() if cuda else CPU, origin, weights)
        except EngineError as error:
            if "NOT_IMPLEMENTED" not in str(error) or bundle.manifest.graphs[network].precision != "bfloat16":
                raise
            # In 1.31 those for transposed convolutions, in every gradient of a convolution, and for resizing.
            hint = (
                "its CUDA lacks bfloat16 for some operators: use the engine torch or tensorrt, or --precision float16"
            )
            raise EngineError(f"{error}; {hint}") from error
        if cuda and CUDA not in session.get_providers():
            # It only logs that a library is missing, and goes on with the CPU.
            raise EngineError(f"{origin}: ONNX Runtime could not start CUDA; its log says why")
        return OnnxDeviceSession(network, spec, session, weights, self.device, self._stream)

    def _providers(self) -> Providers:
        if self._stream is None:
            raise EngineError(f"engine {self.name!r} was opened for {self.device}")
        settings = {
            "device_id": str(self.device.index),
            "user_compute_stream": str(self._stream.cuda_stream),
            "do_copy_in_default_stream": "1",
            # torch's allocator owns the device's memory: take what a graph needs and not the next power of two.
            "arena_extend_strategy": "kSameAsRequested",
            # Timed at the first run of each shape, which belongs to the warm-up; see the torch engine.
            "cudnn_conv_algo_search": "HEURISTIC" if self._deterministic else "EXHAUSTIVE",
            "use_tf32": "0",  # float32 means float32
        }
        # Shapes are computed on the host, by the CPU provider.
        return [(CUDA, settings), *CPU]
