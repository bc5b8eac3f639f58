"""Traced gradients against autograd and closed forms, and the guard against values baked in while tracing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional

from export import ExportError
from export.parity import call_session
from export.runtime.onnxruntime import OnnxRuntime, OnnxSession
from export.to_onnx import Graph, check_constants, to_onnx
from export.trace import (
    average_pool_backward,
    convolution_backward,
    group_norm,
    group_norm_backward,
    silu_backward,
    squeeze,
    trace,
)
from models.bundle import Bundle
from models.card import NetworkSpec
from models.run import energy_gradient

from . import tiny

CONVOLUTIONS = [
    # stride, padding, dilation, groups, transposed, size
    (1, 1, 1, 1, False, (8, 8)),
    (1, 0, 1, 2, False, (8, 5)),
    (1, 4, 1, 1, False, (8, 8)),
    (1, 2, 2, 4, False, (9, 8)),
    (2, 1, 1, 1, False, (8, 8)),
    (2, 1, 1, 4, False, (7, 8)),
    (3, 0, 2, 2, False, (11, 13)),
    ((2, 1), (1, 2), (1, 2), 2, False, (8, 9)),
    (2, 1, 1, 2, True, (4, 5)),
    (1, 1, 2, 1, True, (6, 6)),
    (2, 1, 1, 1, False, (9,)),
]


@pytest.mark.parametrize(("stride", "padding", "dilation", "groups", "transposed", "size"), CONVOLUTIONS)
def test_convolution_backward_is_the_adjoint(stride, padding, dilation, groups, transposed, size):
    """The input gradient g satisfies <g, v> = <y, conv(v)> for every v, which defines it."""
    torch.manual_seed(0)
    axes = len(size)
    expanded = [list(value) if isinstance(value, tuple) else [value] * axes for value in (stride, padding, dilation)]
    settings = (*expanded, transposed, [0] * axes, groups)
    sample = torch.randn(3, 8, *size, dtype=torch.float64)
    weight = torch.randn(8, 4 if transposed else 8 // groups, *[3] * axes, dtype=torch.float64)

    def convolve(value):
        return torch.ops.aten.convolution(value, weight, None, *settings)

    upstream = torch.randn_like(convolve(sample))
    gradient, *others = convolution_backward(upstream, sample, weight, None, *settings, [True, False, False])
    assert others == [None, None]
    assert gradient.shape == sample.shape
    direction = torch.randn_like(sample)
    torch.testing.assert_close((gradient * direction).sum(), (upstream * convolve(direction)).sum())


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [(2, 2, 0, (8, 6)), (3, 2, 1, (8, 8)), (3, 1, 1, (5, 6)), (2, 2, 0, (7, 8)), ((2, 3), (2, 3), (0, 0), (4, 6))],
)
def test_average_pool_backward_is_the_adjoint(kernel, stride, padding, size):
    """Pooling is linear, so its gradient is the adjoint: <g, v> = <y, pool(v)>."""
    torch.manual_seed(0)
    sample = torch.randn(3, 4, *size, dtype=torch.float64)

    def pool(value):
        return functional.avg_pool2d(value, kernel, stride, padding)

    upstream = torch.randn_like(pool(sample))
    lists = [[value] if isinstance(value, int) else list(value) for value in (kernel, stride, padding)]
    gradient = average_pool_backward(upstream, sample, *lists, False, True, None)
    direction = torch.randn_like(sample)
    torch.testing.assert_close((gradient * direction).sum(), (upstream * pool(direction)).sum())


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("groups", "size"), [(1, (3, 5)), (3, (4, 4)), (6, (7,))])
def test_group_norm_and_its_gradient(groups, size, affine):
    """The short decomposition gives the values, the statistics and the input gradient of torch's group norm."""
    torch.manual_seed(0)
    rows, channels, pixels = 3, 6, math.prod(size)
    sample = torch.randn(rows, channels, *size, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(2, channels, dtype=torch.float64) if affine else (None, None)
    expected = functional.group_norm(sample, groups, weight, bias, 1e-3)
    upstream = torch.randn_like(expected)
    (expected_gradient,) = torch.autograd.grad(expected, sample, upstream)
    sample = sample.detach()
    normal, mean, scale = group_norm(sample, weight, bias, rows, channels, pixels, groups, 1e-3)
    torch.testing.assert_close(normal, expected.detach())
    torch.testing.assert_close(mean, sample.reshape(rows, groups, -1).mean(dim=2))
    mask = [True, False, False]
    gradient, *others = group_norm_backward(upstream, sample, mean, scale, weight, rows, channels, pixels, groups, mask)
    torch.testing.assert_close(gradient, expected_gradient)
    assert others == [None, None]


def test_silu_gradient():
    """The derivative of x sigmoid(x), also where the sigmoid is 0 or 1 to the last bit."""
    sample = torch.linspace(-800, 800, 1601, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(functional.silu(sample).sum(), sample)
    torch.testing.assert_close(silu_backward(torch.ones(1601, dtype=torch.float64), sample.detach()), expected)


@pytest.mark.parametrize("axes", [[1], [-1, 1], [1, 3], [0, 2]])
def test_squeeze_of_several_axes(axes):
    """As torch's own: the named axes go where they have one element, counted from either end, and no others."""
    sample = torch.randn(4, 1, 1, 1, 3)[..., :1] if -1 in axes else torch.randn(4, 1, 3, 1)
    torch.testing.assert_close(squeeze(sample, axes), sample.squeeze(tuple(axes)))


def test_weight_gradients_are_refused():
    """A graph that needs the gradient of a weight would compute training, not inference."""
    ones, mask = torch.ones(1, 1, 1), [True, True, False]
    with pytest.raises(ExportError, match="weight"):
        convolution_backward(ones, ones, ones, None, [1], [0], [1], False, [0], 1, mask)
    with pytest.raises(ExportError, match="weight"):
        group_norm_backward(ones, ones, ones, ones, ones, 1, 1, 1, 1, mask)


BESIDE = Path("no-graph-here-is-large.safetensors")


def example(spec: NetworkSpec, rows: int = 3) -> dict[str, torch.Tensor]:
    draws = {
        "sample": torch.randn(rows, *tiny.IMAGE),
        "time": torch.rand(rows) * 999,
        "label": torch.randint(11, (rows,)),
    }
    return {tensor.name: draws[tensor.name] for tensor in spec.inputs}


def session_of(name: str, spec: NetworkSpec) -> tuple[torch.nn.Module, Graph, OnnxSession]:
    module = tiny.network(name)
    graph = to_onnx(trace(module, spec, example(spec)), spec, BESIDE)
    return module, graph, OnnxSession(name, spec, graph.data, 1, Path("graph.onnx"))


def test_gradient_graph_of_a_quadratic():
    """U = |w x|^2/2 has the gradient w^2 x, whatever the batch."""
    spec = tiny.gradient_spec("quadratic")
    module, _, session = session_of("quadratic", spec)
    for rows in (1, 2, 9):
        sample = torch.randn(rows, *tiny.IMAGE)
        energy, gradient = call_session(session, {"sample": sample})
        torch.testing.assert_close(energy, (module.weight * sample).square().sum(dim=(1, 2, 3)) / 2)
        torch.testing.assert_close(gradient, module.weight**2 * sample)


def test_inputs_that_forward_takes_as_others():
    """`forward(**others)` becomes a graph with the card's inputs and any number of rows, and is left as it was."""
    module, _, session = session_of("others", tiny.forward_spec("others", tiny.TIME))
    assert "forward" not in vars(module)
    for rows in (1, 5):
        sample, time = torch.randn(rows, *tiny.IMAGE), torch.rand(rows)
        (output,) = call_session(session, {"sample": sample, "time": time})
        torch.testing.assert_close(output, module(sample=sample, time=time))


def test_gradient_graph_against_float64_autograd(bundle: Bundle):
    """A network with every kind of layer: energy and gradient are within 1e-5 of autograd in double precision."""
    network = "energy-gradient"
    spec = bundle.card.networks[network]
    session = OnnxRuntime(1).load(bundle, network)
    reference = tiny.network("richenergy").double()
    for rows, seed in ((1, 0), (1, 1), (7, 0), (7, 1), (40, 2)):
        torch.manual_seed(seed)
        inputs = example(spec, rows)
        exact = energy_gradient(
            reference, ("sample",), **(inputs | {name: inputs[name].double() for name in ("sample", "time")})
        )
        for output, expected in zip(call_session(session, inputs), exact, strict=True):
            assert output.shape == expected.shape
            assert (output - expected).abs().max() <= 1e-5 * expected.abs().max().clamp_min(1.0)


def test_weights_are_held_about_once(bundle: Bundle):
    """A gradient graph uses each weight twice, and holds few of them twice."""
    weights = sum(value.numel() * 4 for value in tiny.network("richenergy").state_dict().values())
    assert bundle.manifest.exported["graphs"]["energy-gradient"]["repeated_weight_bytes"] <= 0.25 * weights
    held = onnx.load(bundle.graph_path("energy-gradient")).graph.initializer
    assert sum(len(tensor.raw_data) for tensor in held) <= 1.25 * weights


def test_interface_follows_the_card():
    """Inputs and outputs have the card's names in its order, and every first axis is dynamic."""
    spec = NetworkSpec(module="richenergy", inputs=(tiny.LABEL, tiny.SAMPLE, tiny.TIME), outputs=(tiny.ENERGY,))
    _, graph, _ = session_of("richenergy", spec)
    model = onnx.load_from_string(graph.data)
    assert [value.name for value in model.graph.input] == ["label", "sample", "time"]
    assert [value.name for value in model.graph.output] == ["energy"]
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "rows"
    assert str(Path(__file__).parent.parent).encode() not in graph.data, "a path of this machine is in the file"


@pytest.mark.parametrize("make_spec", [tiny.energy_spec, tiny.gradient_spec])
def test_a_baked_tensor_is_refused(make_spec):
    """A tensor that is no weight cannot enter a graph, forward or gradient."""
    spec = make_spec("baked")
    with pytest.raises(ExportError, match=r"\(1, 8, 8\).*baked in"):
        trace(tiny.network("baked"), spec, example(spec))


def test_a_constant_put_into_the_model_is_refused():
    """The guard on the finished model finds a constant that the traced program does not explain."""
    spec = tiny.forward_spec("scale")
    program = trace(tiny.network("scale"), spec, example(spec))
    model = onnx.load_from_string(to_onnx(program, spec, BESIDE).data)
    check_constants(model, program)
    weight = next(tensor for tensor in model.graph.initializer if list(tensor.dims)[-2:] == [8, 8])
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[5] += np.float32(1e-3)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    with pytest.raises(ExportError, match=weight.name):
        check_constants(model, program)


def test_an_operator_without_translation_is_named():
    """An operator that ONNX lacks is an error of one line that names it."""
    spec = tiny.forward_spec("unsupported")
    program = trace(tiny.network("unsupported"), spec, example(spec))
    with pytest.raises(ExportError, match=r"no ONNX translation.*bessel_k0"):
        to_onnx(program, spec, BESIDE)
