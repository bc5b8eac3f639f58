"""Backends: an engine on a device, and how batches of a model run there."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from export.runtime import DEFAULT_ENGINE, DEVICE_ENGINES, EngineError, Runtime
from models.bundle import Bundle

from .config import Config, ConfigError, Limits
from .loop.device import AHEAD
from .loop.protocols import Runner
from .loop.runner import ModelRunner

if TYPE_CHECKING:
    from export.runtime.device import DeviceRuntime

    from .loop.device.stream import Stream

log = logging.getLogger(__name__)

AT_ONCE_SECONDS = 0.002
"""So long the event loop may stand still for the sake of one request, and others be read so much later."""

TURN = 16  # steps in a row of one batch, while nobody else waits


class Backend(Protocol):
    """Where the networks and updates of all models run."""

    @property
    def device(self) -> str:
        """`cpu` or `cuda:N`."""

    @property
    def depth(self) -> int:
        """How many batches the engine is to give it ahead, the one that runs included."""

    @property
    def turn(self) -> int:
        """How many steps in a row a batch may take while nobody else waits."""

    @property
    def at_once_seconds(self) -> float:
        """How long a job may be for whoever submits it to run it at once, where it has the device to itself."""

    @property
    def invariance_known(self) -> bool:
        """Whether the batch invariance that manifests state holds here: it is measured with ONNX Runtime on the CPU."""

    def runner(self, bundle: Bundle, limits: Limits, fixed_rows: Mapping[str, int]) -> Runner:
        """A loaded bundle as a runner that is not warmed up yet.

        fixed_rows: networks whose batches are padded, and the number of rows that they are padded to.

        Raises:
            EngineError, BundleError: the engine cannot run it.
        """


class HostBackend:
    """ONNX Runtime on the CPU, states and updates in NumPy: needs no torch."""

    device = "cpu"
    depth = 1
    turn = 1
    at_once_seconds = AT_ONCE_SECONDS
    invariance_known = True

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def runner(self, bundle: Bundle, limits: Limits, fixed_rows: Mapping[str, int]) -> ModelRunner:
        """See `Backend.runner`."""
        sessions = {network: self._runtime.load(bundle, network) for network in bundle.card.networks}
        return ModelRunner(bundle, sessions, limits, fixed_rows=fixed_rows)


class DeviceBackend:
    """States, updates and networks as torch tensors on a device (`server.loop.device`)."""

    at_once_seconds = 0.0  # streams, and torch's modes, are the thread's own
    invariance_known = False

    def __init__(self, runtime: DeviceRuntime, stream: Stream, *, depth: int, turn: int) -> None:
        self.device = str(stream.device)
        self.depth, self.turn = depth, turn
        self._runtime = runtime
        self._stream = stream

    def runner(self, bundle: Bundle, limits: Limits, fixed_rows: Mapping[str, int]) -> Runner:
        """See `Backend.runner`."""
        from .loop.device.runner import DeviceRunner

        # Weights and pools belong to the stream of the steps: what is made there is there before any of them.
        with self._stream.active():
            sessions = {network: self._runtime.load(bundle, network) for network in bundle.card.networks}
            return DeviceRunner(bundle, sessions, limits, self._stream, fixed_rows=fixed_rows)


def open_backends(config: Config) -> list[Backend]:
    """The backends of a configuration, one a device.

    Of the devices `auto` is the first GPU where the engine can use one, and else the CPU; `cuda` is all GPUs.

    Raises:
        ConfigError: a device that is not there; names the option, `device`.
        EngineError: unknown engine, one that cannot run on that device, or a package is missing.
    """
    if config.device == "auto":
        return [_open(config, _automatic(config.engine))]
    if config.device == "cuda":
        count = _gpus()
        if not count:
            raise ConfigError("device cuda: NVIDIA's driver shows no GPU here")
        return [_open(config, f"cuda:{number}") for number in range(count)]
    return [_open(config, device) for device in config.device.split(",")]


def _open(config: Config, device: str) -> Backend:
    engine = config.engine
    if engine == DEFAULT_ENGINE and device == "cpu":
        return HostBackend(_onnxruntime(config.threads))
    if engine not in DEVICE_ENGINES:
        raise EngineError(f"unknown engine {engine!r}; known: {', '.join(DEVICE_ENGINES)}")
    try:
        import torch
    except ImportError as error:
        raise EngineError(f"engine {engine!r} on {device} needs torch: {error}") from error
    from export.runtime.device import open_device_runtime

    from .loop.device.stream import CudaStream, HostStream

    if device == "cpu":
        torch.set_num_threads(config.threads)
        return DeviceBackend(open_device_runtime(engine, torch.device(device)), HostStream(), depth=1, turn=1)
    place = torch.device(device)
    try:
        open_device_runtime("torch", place)  # says what is wrong with the device before a stream is made there
    except EngineError as error:
        raise ConfigError(str(error)) from error
    stream = CudaStream(place)
    rows = config.limits.max_batch_rows
    runtime = open_device_runtime(engine, place, stream.steps, rows, deterministic=config.deterministic)
    return DeviceBackend(runtime, stream, depth=AHEAD, turn=TURN)


def _onnxruntime(threads: int) -> Runtime:
    """Imported here: a machine may have torch alone."""
    try:
        from export.runtime.onnxruntime import OnnxRuntime
    except ImportError as error:
        message = f"engine {DEFAULT_ENGINE!r} needs the extra cpu or gpu: pip install -e '.[cpu]' ({error})"
        raise EngineError(message) from error
    return OnnxRuntime(threads)


def _automatic(engine: str) -> str:
    """`cuda:0` where there is one and this engine has what it takes to run on it."""
    if not _gpus():
        return "cpu"
    if engine == DEFAULT_ENGINE:
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            log.warning("there is a GPU, but this ONNX Runtime has no CUDA: serving on the CPU (see --engine)")
            return "cpu"
    return "cuda:0"


def _gpus() -> int:
    """How many GPUs NVIDIA's driver shows this process. Asked of the driver, as torch takes seconds to import."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
