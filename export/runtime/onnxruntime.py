"""ONNX Runtime on the CPU: the default engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from models.bundle import Bundle
from models.card import NetworkSpec

from . import Array, EngineError

ERRORS_ONLY = 3
Providers = Sequence[str | tuple[str, Mapping[str, str]]]
CPU: Providers = ("CPUExecutionProvider",)


class OnnxSession:
    """A graph in ONNX Runtime's CPU provider."""

    def __init__(
        self,
        name: str,
        spec: NetworkSpec,
        graph: bytes,
        threads: int,
        origin: Path,
        beside: Mapping[str, bytes] | None = None,
    ) -> None:
        """Arguments as for `open_graph`."""
        self.name = name
        self._outputs = [tensor.name for tensor in spec.outputs]
        self._beside = beside or {}  # the session reads its weights where they are, for as long as it lives
        self._session = open_graph(spec, graph, cpu_options(threads), CPU, origin, self._beside)

    def run(self, inputs: Mapping[str, Array]) -> tuple[npt.NDArray[np.float32], ...]:
        """See `Session.run`."""
        return tuple(self._session.run(self._outputs, inputs))


class OnnxRuntime:
    """ONNX Runtime with the CPU provider."""

    name = "onnxruntime"

    def __init__(self, threads: int) -> None:
        """threads: how many one network may use at a time, the calling one included.

        Raises:
            EngineError: fewer than 1.
        """
        if threads < 1:
            raise EngineError(f"threads must be at least 1, got {threads}")
        self.threads = threads

    def load(self, bundle: Bundle, network: str) -> OnnxSession:
        """See `Runtime.load`."""
        graph, weights = read_graph(bundle, network)
        check_cpu_runs(bundle, network)
        spec, origin = bundle.card.networks[network], bundle.graph_path(network)
        return OnnxSession(network, spec, graph, self.threads, origin, weights)


def cpu_options(threads: int) -> onnxruntime.SessionOptions:
    """Session options for the CPU provider."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A spinning pool burns a core between two steps, and the cores are shared with the threads that serve the
    # network. One row of the digits denoiser (0.9M weights, 2 threads, 2 cores that others use too), spinning
    # against not: p90 9.5 ms against 5.6 ms, p50 1.2 against 1.6, best case 0.6 against 0.7; with 1 thread no
    # difference. The tail is what a server is judged by.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def read_graph(bundle: Bundle, network: str) -> tuple[bytes, dict[str, bytes]]:
    """A network's graph, and by name the contents of the file with a large graph's weights.

    Raises:
        EngineError: the bundle has no such network, or a file cannot be read.
    """
    if network not in bundle.card.networks:
        raise EngineError(f"{bundle.directory}: no network {network!r}; there are {sorted(bundle.card.networks)}")
    path, beside = bundle.graph_path(network), bundle.graph_weights_path(network)
    try:
        return path.read_bytes(), {} if beside is None else {beside.name: beside.read_bytes()}
    except OSError as error:
        raise EngineError(f"{error.filename}: {error.strerror}") from error


def check_cpu_runs(bundle: Bundle, network: str) -> None:
    """
    Raises:
        EngineError: the graph's precision is one that ONNX Runtime's CPU provider has no kernels for.
    """
    if bundle.manifest.graphs[network].precision == "bfloat16":
        raise EngineError(
            f"{bundle.graph_path(network)}: ONNX Runtime does not compute in bfloat16 on the CPU; "
            f"use the torch engine, or export with --precision float16"
        )


def open_graph(
    spec: NetworkSpec,
    graph: bytes,
    options: onnxruntime.SessionOptions,
    providers: Providers,
    origin: Path,
    beside: Mapping[str, bytes],
) -> onnxruntime.InferenceSession:
    """
    graph: the model. origin: the file that it came from, for messages. beside: by name, the contents of the file
    that a large model has its weights in; they must outlive the session.

    Raises:
        EngineError: the model is invalid, refers to another file than that, or does not match `spec`.
    """
    options.log_severity_level = ERRORS_ONLY
    # A model may name files that hold its weights, and a path is a way to read any file of this machine. A large
    # model of ours has one, whose hash was checked and which is given here, so that no path is followed: nothing
    # can lie beneath a regular file, where any other would be looked for.
    options.add_external_initializers_from_files_in_memory(
        [*beside], [*beside.values()], [len(contents) for contents in beside.values()]
    )
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(origin / "none"))
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=providers)
    # The binding's exceptions share no base class but Exception, and this one says which file it was.
    except Exception as error:
        raise EngineError(f"{origin}: ONNX Runtime refused the model: {' '.join(str(error).split())}") from error
    # It would keep the model's bytes for as long as it lives, to begin anew on other providers when these fail; what
    # was asked to run on a GPU is not to end up on the CPU unnoticed.
    session.disable_fallback()
    session._model_bytes = None
    for kind, wanted, present in (
        ("inputs", spec.inputs, session.get_inputs()),
        ("outputs", spec.outputs, session.get_outputs()),
    ):
        expected, found = {tensor.name for tensor in wanted}, {value.name for value in present}
        if expected != found:
            raise EngineError(f"{origin}: {kind} of the model are {sorted(found)}, the card says {sorted(expected)}")
    return session
