"""Graphs in half precision: which types they have, what they compute, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

import export.to_onnx
from export import ExportError
from export.bundle_writer import export_checkpoint
from export.parity import HALF_BOUNDS, bounds_of, call_session, draw_inputs
from export.precision import emulated, lower
from export.runtime import EngineError
from export.runtime.device import open_device_runtime
from export.runtime.onnxruntime import OnnxRuntime, OnnxSession
from export.to_onnx import opset_of, to_onnx
from export.trace import trace
from models.bundle import Bundle, load_bundle
from models.card import NetworkSpec
from models.run import energy_gradient

from . import tiny

HALVES = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}
FLOAT = onnx.TensorProto.FLOAT
ENERGY = tiny.gradient_spec("richenergy", tiny.TIME, tiny.LABEL)


@pytest.fixture(scope="module", params=HALVES)
def half_bundle(request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny checkpoint in half precision."""
    return export_checkpoint(checkpoint, tmp_path_factory.mktemp(request.param), precision=request.param).bundle


def graph_of(module: nn.Module, spec: NetworkSpec, precision: str) -> onnx.ModelProto:
    card = tiny.card({"network": spec}, {spec.module: tiny.UNSAVED})
    program = trace(module, spec, draw_inputs(card, spec, 3, seed=0))
    return onnx.load_from_string(to_onnx(program, spec, Path("no-graph-here-is-large"), precision).data)


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    return {v.name: v.type.tensor_type.elem_type for v in values} | {t.name: t.data_type for t in inferred.initializer}


def shapes_of(model: onnx.ModelProto, node: onnx.NodeProto) -> list[list[int]]:
    """The known shapes of a node's inputs; an open dimension is 0."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred.value_info}
    shapes |= {tensor.name: list(tensor.dims) for tensor in inferred.initializer}
    return [shapes[name] for name in node.input]


def exact(network: str, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    module = tiny.network(network).double()
    double = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    return energy_gradient(module, ("sample",), **double)


def test_the_manifest_records_precision_bound_and_parity(half_bundle: Bundle):
    """Each graph says what it computes in, how far it is from float32 torch, and keeps the bound of its type."""
    for graph in load_bundle(half_bundle.directory).manifest.graphs.values():
        assert graph.precision in HALVES
        assert 0 < graph.worst <= graph.bound == HALF_BOUNDS[graph.precision]
        assert graph.opset == opset_of(graph.precision)
        assert not (graph.precision == "bfloat16" and graph.batch_invariant)
    assert half_bundle.manifest.exported["precision"] in HALVES
    assert bounds_of("float32")["forward"] < HALF_BOUNDS["float16"] < HALF_BOUNDS["bfloat16"]


def test_types_are_those_of_autocast(half_bundle: Bundle):
    """Products in half precision but for the energy's layer, norms and softmax in float32, interfaces float32."""
    model = onnx.load(half_bundle.graph_path("energy-gradient"))
    half = HALVES[half_bundle.manifest.graphs["energy-gradient"].precision]
    types = types_of(model)
    taken = {
        op: Counter(types[node.output[0]] for node in model.graph.node if node.op_type == op)
        for op in ("Conv", "ConvTranspose", "MatMul", "Gemm", "Softmax", "ReduceMean", "Sqrt", "Sin", "Cos")
    }
    assert set(taken["Conv"]) == set(taken["ConvTranspose"]) == {half}
    narrow = [
        node for node in model.graph.node if node.op_type in ("Gemm", "MatMul") and types[node.output[0]] == FLOAT
    ]
    assert len(narrow) == 2  # the energy's layer and its gradient
    assert all(any(shape[-2:] in ([1, 16], [16, 1]) for shape in shapes_of(model, node)) for node in narrow)
    assert taken["MatMul"][half] + taken["Gemm"][half] > len(narrow)
    for op in ("Softmax", "ReduceMean", "Sqrt", "Sin", "Cos"):
        assert set(taken[op]) == {FLOAT}, op
    interface = {value.name: types[value.name] for value in (*model.graph.input, *model.graph.output)}
    assert interface == {
        **dict.fromkeys(("sample", "time", "energy", "gradient"), FLOAT),
        "label": onnx.TensorProto.INT64,
    }


def test_weights_are_stored_in_half_precision_once(half_bundle: Bundle, bundle: Bundle):
    """The file is about half as large (tables and norms stay as they are), gradients included, which use each weight in
    another layout."""
    half, whole = (
        sum(len(tensor.raw_data) for tensor in onnx.load(source.graph_path("energy-gradient")).graph.initializer)
        for source in (half_bundle, bundle)
    )
    assert half < 0.65 * whole


@pytest.mark.parametrize("precision", HALVES)
def test_large_graphs_too(precision: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The file beside a large graph holds half precision, and its parity is measured in the same way."""
    monkeypatch.setattr(export.to_onnx, "INLINE_BYTES", 0)
    bundle = export_checkpoint(checkpoint, tmp_path, precision=precision).bundle
    for name, graph in bundle.manifest.graphs.items():
        held = onnx.load(bundle.graph_path(name), load_external_data=False).graph.initializer
        outside = [tensor for tensor in held if tensor.data_location == onnx.TensorProto.EXTERNAL]
        assert HALVES[precision] in {tensor.data_type for tensor in outside}
        assert 0 < graph.worst <= graph.bound


def test_float16_runs_on_the_cpu(checkpoint: Path, tmp_path: Path):
    """Through both engines of ONNX Runtime, called as any other network; the error is one of a few roundings."""
    bundle = export_checkpoint(checkpoint, tmp_path, precision="float16").bundle
    inputs = draw_inputs(bundle.card, ENERGY, 6, seed=9)
    session = OnnxRuntime(1).load(bundle, "energy-gradient")
    bound = open_device_runtime("onnxruntime", torch.device("cpu")).load(bundle, "energy-gradient").run(inputs)
    for found, other, expected in zip(call_session(session, inputs), bound, exact("richenergy", inputs), strict=True):
        assert found.dtype == other.dtype == torch.float32
        error = (found - expected).abs().max() / expected.abs().max().clamp_min(1.0)
        assert 1e-6 < error <= HALF_BOUNDS["float16"]
        assert torch.equal(found, other)


def test_bfloat16_is_refused_by_the_cpu_with_a_way_out(checkpoint: Path, tmp_path: Path):
    """ONNX Runtime has no such kernels on the CPU: both engines say so and name what there is."""
    bundle = export_checkpoint(checkpoint, tmp_path, precision="bfloat16").bundle
    for runtime in (OnnxRuntime(1), open_device_runtime("onnxruntime", torch.device("cpu"))):
        with pytest.raises(EngineError, match=r"denoiser\.onnx: .*bfloat16.*--precision float16"):
            runtime.load(bundle, "denoiser")


def test_bfloat16_is_measured_with_its_roundings(monkeypatch: pytest.MonkeyPatch):
    """The stand-in for bfloat16 rounds weights and every result: products of numbers with 8 bits, bit for bit."""

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 32, bias=False), nn.Linear(32, 16, bias=False)

        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(sample))

    torch.manual_seed(0)
    module = Product().eval().requires_grad_(False)
    spec = NetworkSpec(
        module="product",
        inputs=(tiny.TensorSpec(name="sample", shape=(64,)),),
        outputs=(tiny.TensorSpec(name="output", shape=(16,)),),
    )
    graph = graph_of(module, spec, "bfloat16").SerializeToString()
    session = OnnxSession("product", spec, emulated(graph), 1, Path("graph.onnx"))
    sample = torch.randn(5, 64)
    hidden = (sample.bfloat16().double() @ module.first.weight.bfloat16().double().T).float().bfloat16()
    expected = (hidden.double() @ module.second.weight.bfloat16().double().T).float().bfloat16().float()
    (found,) = call_session(session, {"sample": sample})
    # Sums are taken in another order than here, so a result between two numbers may go to either.
    assert (found == expected).float().mean() > 0.95
    torch.testing.assert_close(found, expected, rtol=2.0**-7, atol=1e-3)
    assert not torch.equal(found, module(sample))
    assert torch.equal(found, found.bfloat16().float())


def test_precision_belongs_to_a_version(tmp_path: Path, scale_checkpoint: Path):
    """Another precision of the same checkpoint is the next version, and over a standing one only by force."""
    repository = tmp_path / "repository"
    first = export_checkpoint(scale_checkpoint, repository).bundle
    second = export_checkpoint(scale_checkpoint, repository, precision="float16")
    assert (first.manifest.version, second.bundle.manifest.version, second.fresh) == (1, 2, True)
    assert not export_checkpoint(scale_checkpoint, repository, precision="float16").fresh
    with pytest.raises(ExportError, match="made from the same one in float32"):
        export_checkpoint(scale_checkpoint, repository, version=1, precision="float16")
    assert load_bundle(first.directory).manifest == first.manifest


def test_a_weight_beyond_half_precision_is_refused(tmp_path: Path):
    """float16 ends at 65504: such a weight would become infinite."""
    module = tiny.network("denoiser")
    module.into.weight[0, 0, 0, 0] = 1e5
    spec = tiny.forward_spec("denoiser", tiny.TIME, tiny.LABEL, tiny.TensorSpec(name="latent", shape=tiny.IMAGE))
    with pytest.raises(ExportError, match=r"'into\.weight' has values beyond the range of float16"):
        graph_of(module, spec, "float16")
    graph_of(module, spec, "bfloat16")


def test_a_baked_constant_is_still_refused(monkeypatch: pytest.MonkeyPatch):
    """The guard knows weights by their rounded values, and nothing else."""
    spec = tiny.forward_spec("scale")
    convolution = nn.Conv2d(1, 1, 5, padding=2, bias=False).requires_grad_(False)
    program = trace(
        convolution,
        NetworkSpec(module="c", inputs=(tiny.TensorSpec(name="input", shape=tiny.IMAGE),), outputs=spec.outputs),
        {"input": torch.randn(3, *tiny.IMAGE)},
    )
    spec = NetworkSpec(module="c", inputs=(tiny.TensorSpec(name="input", shape=tiny.IMAGE),), outputs=spec.outputs)
    to_onnx(program, spec, Path("beside"), "float16")

    def spoiled(model: ir.Model, precision: str) -> None:
        lower(model, precision)
        (weight,) = [v for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT16]
        values = weight.const_value.numpy().copy()
        values.flat[3] += np.float16(0.01)
        weight.const_value = ir.tensor(values, name=weight.name)

    monkeypatch.setattr(export.to_onnx, "lower", spoiled)
    with pytest.raises(ExportError, match="baked in"):
        to_onnx(program, spec, Path("beside"), "float16")


def test_branches_are_refused():
    """Types inside of a branch are not rewritten, so a graph that has one is no graph of ours."""
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    agraph (float[rows] x, bool c) => (float[rows] y)
    { y = If (c) <then_branch = g1 () => (float[rows] a) { a = Neg(x) },
                  else_branch = g2 () => (float[rows] b) { b = Abs(x) }> }
    """
    with pytest.raises(ExportError, match="branches"):
        lower(ir.from_proto(onnx.parser.parse_model(text)), "float16")
