"""From a torch module to a graph of core operators: networks, and the gradients of energies.

No exporter traces `torch.autograd.grad` (and those that seem to, bake the traced gradient in as a
constant), so the gradient is traced below autograd: `make_fx` records the operators that the
backward pass runs, which leaves an ordinary forward graph.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._decomp import core_aten_decompositions
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.card import NetworkSpec
from models.run import energy_gradient

from . import ExportError

LITERAL_ELEMENTS = 16
"""Constants up to this size may be literals of the code (`torch.tensor([0.5, 2.0])`); larger ones must be weights."""


def trace(module: nn.Module, spec: NetworkSpec, example: Mapping[str, Tensor]) -> ExportedProgram:
    """Trace one network of a card.

    module: in eval mode, parameters without gradients.
    example: inputs by name, each `(rows, *shape)` with rows >= 2 (a batch of one would be read as a fixed size).
    Returns: a program whose inputs are the spec's by name, whose first axes are dynamic, and whose only
    tensors are the module's weights under their own names.

    Raises:
        ExportError: the graph would hold a tensor that is neither a weight nor a small literal.
    """
    inputs = {tensor.name: example[tensor.name] for tensor in spec.inputs}
    if spec.function == "energy_gradient":
        traced = _trace_gradient(module, spec.gradients, inputs)
        program = torch.export.export(
            traced, tuple(inputs.values()), dynamic_shapes=tuple({0: Dim.DYNAMIC} for _ in inputs)
        )
        # The ONNX exporter decomposes what it is given, and this is core operators already (an operator that ONNX lacks
        # is refused, and belongs into `decompositions`). To do it again took up to two thirds of the translation.
        program.run_decompositions = lambda table=None, **_: program
        return program
    with _explicit_arguments(module, list(inputs)):
        program = torch.export.export(
            module,
            (),
            kwargs=inputs,
            dynamic_shapes={name: {0: Dim.DYNAMIC} for name in inputs},
            # diffusers' U-Net asks whether the batch is larger than 63 (a memory format, no change of values).
            # A branch on the batch becomes an assertion, which ONNX drops; `parity` measures beyond it.
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    _check_tensors(program.constants, dict(_weights(module)))
    return program


@contextmanager
def _explicit_arguments(module: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Let `forward(**others)` look as if it named its arguments: torch.export takes no dynamic shapes of others."""
    forward = module.forward
    if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in inspect.signature(forward).parameters.values()):
        yield
        return

    def named(*values: Tensor, **others: Tensor) -> Any:
        return forward(**dict(zip(names, values, strict=False)), **others)

    named.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    )
    module.forward = named
    try:
        yield
    finally:
        del module.forward


def _trace_gradient(module: nn.Module, gradients: Sequence[str], inputs: Mapping[str, Tensor]) -> fx.GraphModule:
    """A graph of `models.run.energy_gradient` whose placeholders are named as the inputs."""
    names = list(inputs)

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        return energy_gradient(module, gradients, **dict(zip(names, tensors, strict=True)))

    # Only the first axis is symbolic. With all of them symbolic the graph computes at run time
    # what is known here, such as the output padding of every transposed convolution.
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    fakes = [
        mode.from_tensor(
            tensor,
            source=ConstantSource(name),
            symbolic_context=StatelessSymbolicContext(
                dynamic_sizes=[DimDynamic.DYNAMIC] + [DimDynamic.STATIC] * (tensor.dim() - 1)
            ),
        )
        for name, tensor in inputs.items()
    ]
    # The backward of fused attention has no ONNX translation; the mathematical one is plain operators.
    with sdpa_kernel(SDPBackend.MATH):
        graph_module = make_fx(
            function, decomposition_table=decompositions(), tracing_mode="symbolic", _allow_non_fake_inputs=True
        )(*fakes)
    return _name_tensors(graph_module, names, dict(_weights(module)))


def _name_tensors(traced: fx.GraphModule, inputs: Sequence[str], weights: Mapping[str, Tensor]) -> fx.GraphModule:
    """Give placeholders and weights the names of the module, and refuse any other tensor in the graph."""
    names = {id(tensor): name for name, tensor in weights.items()}
    tensors: dict[str, Any] = {}
    placeholders = iter(inputs)
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            node.target = node.name = next(placeholders)
        elif node.op == "get_attr":
            tensor = getattr(traced, node.target)
            node.target = names.get(id(tensor), node.target)
            tensors[node.target] = tensor
    _check_tensors({name: tensor for name, tensor in tensors.items() if name not in weights}, {})
    return fx.GraphModule(tensors, traced.graph).eval()


def _weights(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _check_tensors(tensors: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Raises ExportError where a tensor in a graph is neither a weight nor a small literal."""
    known = {id(tensor) for tensor in weights.values()}
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and tensor.numel() > LITERAL_ELEMENTS and id(tensor) not in known:
            raise ExportError(
                f"the graph holds a constant {name} of shape {tuple(tensor.shape)} that is no parameter or buffer of "
                f"the module: a value was baked in while tracing, or a table should be registered as a buffer"
            )


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Core ATen decompositions, and our own: some that ONNX has no translation of, some that are shorter.

    The general decomposition of a group norm and its gradient takes 60 nodes, which cost more than the
    convolution before it; the gradient of an input alone takes 20.
    """
    aten = torch.ops.aten
    table: dict[Any, Callable[..., Any]] = dict(core_aten_decompositions())
    table[aten.convolution_backward.default] = convolution_backward
    table[aten.avg_pool2d_backward.default] = average_pool_backward
    table[aten.native_group_norm.default] = group_norm
    table[aten.native_group_norm_backward.default] = group_norm_backward
    table[aten.silu_backward.default] = silu_backward
    table[aten.squeeze.dims] = squeeze
    del table[aten.squeeze.dim]  # to `dims`, which ONNX has no translation of
    return table


def convolution_backward(
    gradient: Tensor,
    sample: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, None, None]:
    """`aten.convolution_backward` for the input alone: a transposed convolution with the same weight.

    A strided convolution maps several input sizes to one output size; the transposed one returns the
    smallest of them, and `output_padding = in - ((out - 1) stride - 2 padding + dilation (k - 1) + 1)`
    makes up the rest. The input gradient of a transposed convolution is a plain one.

    Raises:
        ExportError: the gradient of a weight is asked for; weights are constants here.
    """
    if output_mask[1] or output_mask[2]:
        raise ExportError(
            "the graph takes the gradient of a convolution's weight; set requires_grad=False on parameters"
        )
    if not output_mask[0]:
        return None, None, None
    axes = weight.dim() - 2
    stride, padding, dilation = (_per_axis(value, axes) for value in (stride, padding, dilation))
    zeros = [0] * axes
    if transposed:
        back = torch.ops.aten.convolution(gradient, weight, None, stride, padding, dilation, False, zeros, groups)
        return back, None, None
    reach = [dilation[i] * (weight.shape[2 + i] - 1) - padding[i] for i in range(axes)]
    if all(step == 1 for step in stride) and min(reach) >= 0:
        grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:]).transpose(1, 2)
        mirrored = grouped.reshape(-1, weight.shape[0] // groups, *weight.shape[2:]).flip(list(range(2, weight.dim())))
        back = torch.ops.aten.convolution(gradient, mirrored, None, stride, reach, dilation, False, zeros, groups)
        return back, None, None
    remainder = [
        sample.shape[2 + i]
        - ((gradient.shape[2 + i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (weight.shape[2 + i] - 1) + 1)
        for i in range(axes)
    ]
    back = torch.ops.aten.convolution(gradient, weight, None, stride, padding, dilation, True, remainder, groups)
    return back, None, None


def average_pool_backward(
    gradient: Tensor,
    sample: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """`aten.avg_pool2d_backward`: each value of `gradient` spread evenly over its window.

    gradient: (rows, channels, h, w). sample: (rows, channels, height, width), the input that was pooled.
    Windows that tile the image are a repetition; others a transposed convolution with ones.

    Raises:
        ExportError: `ceil_mode`, or padding that is left out of the count; no network here needs them.
    """
    kernel = _per_axis(kernel_size, 2)
    step = _per_axis(stride, 2) if stride else kernel
    pad = _per_axis(padding, 2)
    if ceil_mode or (not count_include_pad and any(pad)):
        raise ExportError("the gradient of an average pool with ceil_mode or count_include_pad=False is not supported")
    rows, channels, height, width = sample.shape
    small_height, small_width = gradient.shape[2:]
    share = gradient / (divisor_override or kernel[0] * kernel[1])
    if kernel == step and not any(pad) and (small_height * kernel[0], small_width * kernel[1]) == (height, width):
        windows = share.reshape(rows, channels, small_height, 1, small_width, 1)
        return windows.expand(-1, -1, -1, kernel[0], -1, kernel[1]).reshape(rows, channels, height, width)
    ones = torch.ones(channels, 1, *kernel, dtype=sample.dtype, device=sample.device)
    remainder = [
        size - ((small - 1) * step[i] - 2 * pad[i] + kernel[i])
        for i, (size, small) in enumerate(((height, small_height), (width, small_width)))
    ]
    return torch.ops.aten.convolution(share, ones, None, step, pad, [1, 1], True, remainder, channels)


def group_norm(
    sample: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    rows: int,
    channels: int,
    pixels: int,
    groups: int,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`aten.native_group_norm`: normalised values, and mean and 1/std of each group, `(rows, groups)`."""
    grouped = sample.reshape(rows, groups, channels // groups * pixels)
    mean = grouped.mean(dim=2, keepdim=True)
    centred = grouped - mean
    scale = torch.rsqrt((centred * centred).mean(dim=2, keepdim=True) + epsilon)
    normal = (centred * scale).reshape(sample.shape)
    broadcast = [channels] + [1] * (sample.dim() - 2)
    if weight is not None:
        normal = normal * weight.reshape(broadcast)
    if bias is not None:
        normal = normal + bias.reshape(broadcast)
    return normal, mean.squeeze(2), scale.squeeze(2)


def group_norm_backward(
    gradient: Tensor,
    sample: Tensor,
    mean: Tensor,
    scale: Tensor,
    weight: Tensor | None,
    rows: int,
    channels: int,
    pixels: int,
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, None, None]:
    """`aten.native_group_norm_backward` for the input alone.

    With n the normalised values and h = weight gradient: `scale (h - mean(h) - n mean(n h))`, means over a group.

    Raises:
        ExportError: the gradient of a weight is asked for.
    """
    if output_mask[1] or output_mask[2]:
        raise ExportError("the graph takes the gradient of a norm's weight; set requires_grad=False on parameters")
    if not output_mask[0]:
        return None, None, None
    shape = (rows, groups, channels // groups * pixels)
    scale = scale.unsqueeze(2)
    normal = (sample.reshape(shape) - mean.unsqueeze(2)) * scale
    if weight is not None:
        gradient = gradient * weight.reshape([channels] + [1] * (gradient.dim() - 2))
    inner = gradient.reshape(shape)
    projection = (normal * inner).mean(dim=2, keepdim=True)
    back = scale * (inner - inner.mean(dim=2, keepdim=True) - normal * projection)
    return back.reshape(sample.shape), None, None


def silu_backward(gradient: Tensor, sample: Tensor) -> Tensor:
    """`aten.silu_backward` written with the forward pass's own values s = sigmoid(x) and y = x s: `s + y (1 - s)`."""
    sigmoid = sample.sigmoid()
    return gradient * (sigmoid + (sample * sigmoid) * (1.0 - sigmoid))


def squeeze(sample: Tensor, axes: Sequence[int]) -> Tensor:
    """`aten.squeeze` of several axes, one after the other, the last first."""
    for axis in sorted((axis % sample.dim() for axis in axes), reverse=True):
        sample = sample.squeeze(axis)
    return sample


def _per_axis(value: Sequence[int], axes: int) -> list[int]:
    return list(value) * axes if len(value) == 1 else list(value)
