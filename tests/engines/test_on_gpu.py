"""Engines on a GPU: each gives what float32 torch gives on the CPU, waits for nothing, and replays when captured."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.end_to_end.bundles import untraced
from export.runtime.device import DeviceSession, open_device_runtime
from models.bundle import Bundle
from models.card import NetworkSpec
from models.checkpoint import load_modules
from models.run import network_of

from ..conftest import ZOO

pytestmark = pytest.mark.gpu

MODEL = "digits-vdrme"
ENGINES = ["onnxruntime", "tensorrt"]
NETWORKS = ["generator", "energy-gradient"]
BOUNDS = {"float32": 1e-4, "float16": 8 * 2.0**-11, "bfloat16": 8 * 2.0**-8}
"""`export.parity.HALF_BOUNDS`; float32 on two devices differs by the order of its sums."""
GPU = torch.device("cuda", 0)


@cache
def stream() -> torch.cuda.Stream:
    return torch.cuda.Stream(GPU)


@cache
def unexported(precision: str) -> Bundle:
    return untraced(ZOO / MODEL, precision)


def draw(bundle: Bundle, spec: NetworkSpec, rows: int, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    drawn = {}
    for tensor in spec.inputs:
        if tensor.dtype == "int64":
            drawn[tensor.name] = torch.randint(10, (rows, *tensor.shape))
        elif tensor.shape:
            drawn[tensor.name] = torch.randn(rows, *tensor.shape)
        else:
            drawn[tensor.name] = torch.randint(999, (rows,)).float()
    return drawn


def on_gpu(session: DeviceSession, spec: NetworkSpec, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    given = {}
    for tensor in spec.inputs:
        value = inputs[tensor.name].to(GPU)
        value = value.to(session.dtype) if tensor.shape and tensor.dtype == "float32" else value
        last = session.channels_last and value.dim() == 4
        given[tensor.name] = value.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    return given


def assert_near(bundle: Bundle, network: str, outputs: tuple[Tensor, ...], inputs: dict, bound: float) -> None:
    spec = bundle.card.networks[network]
    expected = network_of(bundle.card, network, load_modules(bundle.directory, bundle.card.modules))(**inputs)
    for tensor, output, exact in zip(spec.outputs, outputs, expected, strict=True):
        error = (output.float().cpu() - exact).abs().max() / exact.abs().max().clamp_min(1.0)
        assert error <= bound, (tensor.name, float(error))


def assert_keeps_its_word(session: DeviceSession, bundle: Bundle, network: str, bound: float) -> None:
    spec = bundle.card.networks[network]
    for rows in (1, 3, 8):
        inputs = draw(bundle, spec, rows, seed=rows)
        assert_near(bundle, network, session.run(on_gpu(session, spec, inputs)), inputs, bound)
    if not session.capturable:
        return
    static = on_gpu(session, spec, inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
        captured = session.run(static)
    other = draw(bundle, spec, rows, seed=100)
    for name, value in on_gpu(session, spec, other).items():
        static[name].copy_(value)
    session.run(on_gpu(session, spec, draw(bundle, spec, 2, seed=5)))  # another size in between
    graph.replay()
    assert_near(bundle, network, captured, other, bound)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("precision", BOUNDS)
def test_torch(precision: str, network: str):
    """In all precisions, a network and a gradient, captured too."""
    bundle = unexported(precision)
    with torch.cuda.stream(stream()), torch.no_grad():
        session = open_device_runtime("torch", GPU, stream()).load(bundle, network)
        assert_keeps_its_word(session, bundle, network, BOUNDS[precision])


def lacks(engine: str) -> str | None:
    """Why an engine of graphs cannot be tested here."""
    if find_spec(engine) is None:
        return f"{engine} is not installed"
    if engine == "onnxruntime":
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            return "this ONNX Runtime has no CUDA"
    return None


@pytest.fixture(scope="module", params=["float32", "float16", "bfloat16"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    if all(lacks(engine) for engine in ENGINES):  # the export takes up to a minute
        pytest.skip("no engine of graphs is installed")
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from export.bundle_writer import export_checkpoint

    target: Path = tmp_path_factory.mktemp(request.param)
    return export_checkpoint(ZOO / MODEL, target, precision=request.param).bundle


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("engine", ENGINES)
def test_engines_of_graphs(exported: Bundle, engine: str, network: str):
    """Where they are installed: ONNX Runtime's CUDA on torch's stream, and TensorRT."""
    if (why := lacks(engine)) is not None:
        pytest.skip(why)
    bound = BOUNDS[exported.manifest.graphs[network].precision]
    with torch.cuda.stream(stream()), torch.no_grad():
        session = open_device_runtime(engine, GPU, stream(), largest_batch=8).load(exported, network)
        assert_keeps_its_word(session, exported, network, bound)
