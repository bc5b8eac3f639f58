"""A model loaded in an engine, on the CPU or on a device, and who can run a case with it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from time import perf_counter
from types import TracebackType
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor

from export.runtime.device import DeviceSession, open_device_runtime
from export.runtime.onnxruntime import OnnxRuntime
from models.bundle import Bundle
from models.program import Program
from server.backend import TURN, Backend, DeviceBackend, HostBackend
from server.loop.device import AHEAD
from server.loop.device.stream import CudaStream, HostStream, Stream

from .cases import Case
from .contenders import Run, bare, images_of, random_inputs
from .loops import Loops
from .served import Served, Taken

SERVED, BARE, EAGER, COMPILED = "served", "bare", "eager", "compiled"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
S = TypeVar("S", covariant=True)


class Loaded(Protocol):
    """A model with one engine. A context manager: what it started ends with it."""

    @property
    def engine(self) -> str:
        """The engine's name."""

    @property
    def contenders(self) -> tuple[str, ...]:
        """Who can run a case: the server's engine, its networks in a bare loop, plain torch loops."""

    @property
    def tells_networks(self) -> bool:
        """Whether the served requests' `Taken.networks` is the networks' own time, and not that of whole steps."""

    def make(self, contender: str, case: Case, program: Program) -> Run:
        """A contender for a case.

        Raises:
            EndToEndError: it cannot do that here.
        """

    def forward_seconds(self, network: str, rows: int) -> float:
        """What a network takes for so many rows, roughly."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class _Loader(Protocol[S]):
    def load(self, bundle: Bundle, network: str) -> S: ...


class _Once(Generic[S]):
    """A runtime that loads each network once, so that the bare loop has the server's own sessions."""

    def __init__(self, name: str, device: torch.device, loader: _Loader[S]) -> None:
        self.name, self.device = name, device
        self._loader = loader
        self.sessions: dict[str, S] = {}

    def load(self, bundle: Bundle, network: str) -> S:
        if network not in self.sessions:
            self.sessions[network] = self._loader.load(bundle, network)
        return self.sessions[network]


class _Common:
    """The server's engine around a backend."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.card = bundle.card
        self._served = Served(bundle, backend)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self._served)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def _ask(self, case: Case, program: Program) -> Run:
        images = images_of(self.card, program, case.rows)
        return lambda: self._served.ask(program, case.rows, images)


class LoadedOnHost(_Common):
    """ONNX Runtime on the CPU."""

    engine = "onnxruntime"
    contenders = (SERVED, BARE)
    tells_networks = True

    def __init__(self, bundle: Bundle, threads: int) -> None:
        """threads: how many a network may use."""
        runtime = _Once(self.engine, torch.device("cpu"), OnnxRuntime(threads))
        super().__init__(bundle, HostBackend(runtime))
        self._sessions = runtime.sessions

    def make(self, contender: str, case: Case, program: Program) -> Run:
        """See `Loaded.make`."""
        if contender == SERVED:
            return self._ask(case, program)
        return bare(self._sessions, self.card, program, case.rows)

    def forward_seconds(self, network: str, rows: int) -> float:
        """See `Loaded.forward_seconds`."""
        inputs = random_inputs(self.card, network, rows)
        return _better(lambda: self._sessions[network].run(inputs))


class OnDevice(NamedTuple):
    """A backend of the server on a device; sessions: those that it has loaded, by network."""

    backend: DeviceBackend
    stream: Stream
    sessions: dict[str, DeviceSession]


def open_on_device(engine: str, device: torch.device, threads: int = 1) -> OnDevice:
    """Open an engine on a device as the server does, for one model. threads: of torch, on the CPU.

    Raises:
        EngineError: the engine, the device or a package is not there.
    """
    open_device_runtime("torch", device)  # says what is wrong with the device before a stream is made there
    stream: Stream
    if device.type == "cpu":
        torch.set_num_threads(threads)
        stream, steps, depth, turn = HostStream(), None, 1, 1
    else:
        stream = CudaStream(device)
        steps, depth, turn = stream.steps, AHEAD, TURN
    runtime = _Once(engine, device, open_device_runtime(engine, device, steps))
    backend = DeviceBackend(runtime, stream, depth=depth, turn=turn)
    return OnDevice(backend, stream, runtime.sessions)


class LoadedOnDevice(_Common):
    """An engine of `export.runtime.device`: on a GPU, or torch on the CPU."""

    tells_networks = False

    def __init__(self, bundle: Bundle, engine: str, device: torch.device, threads: int) -> None:
        """See `open_on_device`.

        Raises:
            EngineError, BundleError: it cannot be opened, or cannot run the bundle.
        """
        self.engine = engine
        self.contenders = (SERVED, BARE, EAGER, COMPILED) if engine == "torch" else (SERVED, BARE)
        opened = open_on_device(engine, device, threads)
        super().__init__(bundle, opened.backend)
        self._stream, self._sessions = opened.stream, opened.sessions
        self._bundle = bundle
        self._replays: dict[tuple[str, int], Callable[[], object]] = {}
        self._loops: dict[str, Loops] = {}

    def make(self, contender: str, case: Case, program: Program) -> Run:
        """See `Loaded.make`."""
        if contender == SERVED:
            return self._ask(case, program)
        if contender == BARE:
            return self._bare(case, program)
        if contender not in self._loops:
            precision = next(iter(self._bundle.manifest.graphs.values())).precision
            compiled = contender == COMPILED
            loops = Loops(self._bundle, self._stream.device, DTYPES[precision], compiled=compiled)
            self._loops[contender] = loops
        return self._loops[contender].loop(case, program)

    def _bare(self, case: Case, program: Program) -> Run:
        """The networks of the program's lines one after the other, each as a captured graph where that can be."""
        replays = [self._replay(line.network, case.rows) for line in program.lines]

        def run() -> Taken:
            began = perf_counter()
            with self._stream.active(), torch.no_grad():
                for replay in replays:
                    replay()
                mark = self._stream.mark()
            mark.wait()
            return Taken(perf_counter() - began)

        return run

    def _replay(self, network: str, rows: int) -> Callable[[], object]:
        if (network, rows) not in self._replays:
            session = self._sessions[network]

            def call() -> None:
                session.run(inputs)

            with self._stream.active(), torch.no_grad():
                inputs = self._inputs(session, network, rows)
                captures = self._stream.captures()
                graph = session.capturable and captures is not None
                self._replays[network, rows] = captures.capture(call) if graph and captures is not None else call
        return self._replays[network, rows]

    def _inputs(self, session: DeviceSession, network: str, rows: int) -> dict[str, Tensor]:
        shapes = {spec.name: spec.shape for spec in self.card.networks[network].inputs}
        given = {}
        for name, array in random_inputs(self.card, network, rows).items():
            tensor = torch.from_numpy(array).to(self._stream.device)
            if shapes[name]:
                tensor = tensor.to(session.dtype)
            if session.channels_last and tensor.dim() == 4:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            given[name] = tensor
        return given

    def forward_seconds(self, network: str, rows: int) -> float:
        """See `Loaded.forward_seconds`."""
        replay = self._replay(network, rows)

        def run() -> None:
            with self._stream.active(), torch.no_grad():
                replay()
                mark = self._stream.mark()
            mark.wait()

        return _better(run)


def _better(call: Callable[[], object]) -> float:
    """Seconds of the better of two calls."""
    found = []
    for _ in range(2):
        began = perf_counter()
        call()
        found.append(perf_counter() - began)
    return min(found)
