"""Half precision in exported graphs: the types of a float32 graph rewritten as autocast would choose them.

Engines read the precision off the graph's types (TensorRT 11 knows no other way), so it is decided here, for all:

- **Products** (convolutions, matrix products) take and give half precision; their weights are stored in it.
- **Norms, softmax, sums, exponentials, times and all that is not named below** compute in float32.
- **What only moves or combines values** (additions, activations, reshapes) follows its inputs: half precision if all of
  them are, else float32. Numbers of one element adapt, unless half precision cannot hold them.
- **A product with a narrow matrix** (a side below 8, what tensor cores take at a time) stays float32: it costs nothing
  and makes an energy of features, or phases of coordinates, which half precision would round to 8 or 11 bits.
- **Inputs and outputs** stay float32, so that a graph of any precision is called in the same way, and a state that a
  network first does arithmetic with is not rounded before. Engines fuse the casts at the border.

`export.runtime.torch_device` gives modules the same types by autocast itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from . import ExportError

HALF = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
FLOAT = ir.DataType.FLOAT
NARROW = 8
PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
FOLLOWERS = frozenset(
    {
        *("Abs", "Add", "Clip", "Div", "Max", "Min", "Mul", "Neg", "Sub", "Where"),
        *("Elu", "Erf", "Gelu", "LeakyRelu", "Relu", "Sigmoid", "Softplus", "Tanh"),
        *("AveragePool", "DepthToSpace", "MaxPool", "Resize", "SpaceToDepth"),
        *("Concat", "Expand", "Flatten", "Gather", "GatherND", "Identity", "Pad", "Reshape", "Slice", "Split"),
        *("Squeeze", "Tile", "Transpose", "Unsqueeze"),
    }
)
ANY_TYPE = frozenset({"Cast", "Shape", "Size"})
LAYOUTS = frozenset({"Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
FIRST_INPUT_ONLY = frozenset({"Resize"})
"""Whose other inputs are float32, whatever the first one is."""

Array = npt.NDArray[Any]


def lower(model: ir.Model, precision: str) -> None:
    """Give a float32 graph the types of `float16` or `bfloat16`, in place.

    Raises:
        ExportError: a weight is too large for the type, or the graph has branches or functions, which no network here
            exports to.
    """
    if model.functions or any(isinstance(a, ir.Attr) and a.type == ir.AttributeType.GRAPH for a in _attributes(model)):
        raise ExportError(f"{precision}: the graph has branches or functions, whose types are not rewritten")
    _Lowering(model.graph, HALF[precision]).run()


class _Lowering:
    """One pass over the nodes in their order; a value's type is what it has become so far."""

    def __init__(self, graph: ir.Graph, half: ir.DataType) -> None:
        self.graph, self.half = graph, half
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def run(self) -> None:
        for node in list(self.graph):
            if node.op_type in ANY_TYPE:
                continue
            wanted = self.type_of(node)
            inputs = node.inputs[:1] if node.op_type in FIRST_INPUT_ONLY else node.inputs
            for index, value in enumerate(inputs):
                if value is not None and value.dtype in (FLOAT, self.half) and value.dtype != wanted:
                    node.replace_input_with(index, self.cast(value, wanted, node))
            if wanted == self.half:
                for value in node.outputs:
                    if value.dtype == FLOAT:
                        value.dtype = self.half
        self.cast_outputs()
        self.drop_unused()

    def type_of(self, node: ir.Node) -> ir.DataType:
        """The type that a node computes in."""
        if node.op_type in PRODUCTS:
            return FLOAT if any(_is_narrow(value) for value in node.inputs[:2]) else self.half
        if node.op_type in FOLLOWERS:
            floats = [v for v in node.inputs if v is not None and v.dtype in (FLOAT, self.half)]
            if node.op_type in FIRST_INPUT_ONLY:
                floats = floats[:1]
            deciding = [value for value in floats if not self.adapts(value)]
            if deciding and all(value.dtype == self.half for value in deciding):
                return self.half
        return FLOAT

    def adapts(self, value: ir.Value) -> bool:
        """Whether it is one number that half precision can hold, as a literal in the code is."""
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None or tensor.size != 1 or value.dtype != FLOAT:
            return False
        array = tensor.numpy()
        rounded = array.astype(self.half.numpy()).astype(np.float32)
        return bool(np.all(np.isfinite(rounded) & ((rounded != 0) | (array == 0))))

    def cast(self, value: ir.Value, wanted: ir.DataType, before: ir.Node | None = None) -> ir.Value:
        """The value in another type, one for all its users: a weight is stored in it, others are cast by a node.

        before: where the node goes if there is none yet; by default to the end.
        """
        known = self.casts.get((value, wanted))
        if known is not None:
            return known
        name = f"{value.name}_{wanted.name.lower()}"
        tensor, producer = ir.convenience.get_const_tensor(value), value.producer()
        if tensor is not None:
            result = ir.Value(name=name, type=ir.TensorType(wanted), shape=value.shape)
            result.const_value = ir.tensor(self.rounded(value, tensor.numpy()), name=name)
            self.graph.register_initializer(result)
        else:
            if producer is not None and _is_stored(value):  # the weight in another layout
                inputs = [self.cast(_first(producer), wanted, producer), *producer.inputs[1:]]
                node = ir.node(producer.op_type, inputs, producer.attributes, name=name)
                self.graph.insert_after(producer, node)
            else:
                node = ir.node("Cast", [value], {"to": wanted}, name=name)
                self.graph.append(node) if before is None else self.graph.insert_before(before, node)
            (result,) = node.outputs
            result.name, result.type, result.shape = name, ir.TensorType(wanted), value.shape
        self.casts[value, wanted] = result
        return result

    def rounded(self, value: ir.Value, array: Array) -> Array:
        with np.errstate(over="ignore"):
            rounded = array.astype(self.half.numpy())
        if not np.isfinite(rounded.astype(np.float32)).all():
            raise ExportError(f"weight {value.name!r} has values beyond the range of {self.half.name.lower()}")
        return rounded

    def cast_outputs(self) -> None:
        for index, value in enumerate(self.graph.outputs):
            if value.dtype == self.half:
                name, result = value.name, self.cast(value, FLOAT)
                value.name = f"{name}_{self.half.name.lower()}"
                result.name = name
                self.graph.outputs[index] = result

    def drop_unused(self) -> None:
        for node in reversed(list(self.graph)):
            if not any(value.uses() or value.is_graph_output() for value in node.outputs):
                self.graph.remove(node, safe=True)
        for name, value in list(self.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self.graph.initializers[name]


def emulated(graph: bytes) -> bytes:
    """A bfloat16 graph in float32, every value rounded to bfloat16, for an engine that has no kernels for it.

    Products add up in float32 and round their result, as a GPU's do. Takes longer than float32: it is for measuring.
    Weights stay as they are, in a file beside the graph too, and are cast when it runs.
    """
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.ModelProto.FromString(graph)))
    bfloat, nodes = ir.DataType.BFLOAT16, list(model.graph)
    for node in nodes:
        if node.op_type == "Cast":  # to bfloat16 and back is what rounds; from bfloat16, there is nothing left to do
            continue
        for value in node.outputs:
            if value.dtype == bfloat:
                value.dtype = FLOAT
                down = _cast_all_uses(value, bfloat)
                model.graph.insert_after(node, [down, _cast_all_uses(down.outputs[0], FLOAT)])
    for node in nodes:
        if node.op_type == "Cast" and node.outputs[0].dtype == bfloat:
            model.graph.insert_after(node, [_cast_all_uses(node.outputs[0], FLOAT)])
    for value in model.graph.initializers.values():
        if value.dtype == bfloat:
            model.graph.insert_before(model.graph[0], [_cast_all_uses(value, FLOAT)])
    return ir.to_proto(model).SerializeToString()


def _cast_all_uses(value: ir.Value, wanted: ir.DataType) -> ir.Node:
    """A new node that casts a value for all its users; not in the graph yet."""
    users = list(value.uses())
    node = ir.node("Cast", [value], {"to": wanted}, name=f"{value.name}_to_{wanted.name.lower()}")
    (result,) = node.outputs
    result.name, result.type, result.shape = f"{node.name}_value", ir.TensorType(wanted), value.shape
    for user, index in users:
        user.replace_input_with(index, result)
    return node


def _attributes(model: ir.Model) -> list[Any]:
    return [attribute for node in model.graph for attribute in node.attributes.values()]


def _first(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    if value is None:
        raise ExportError(f"node {node.name!r} ({node.op_type}) has no input")
    return value


def _is_stored(value: ir.Value) -> bool:
    """Whether it is a weight, in whatever layout."""
    node = value.producer()
    if ir.convenience.get_const_tensor(value) is not None:
        return True
    return node is not None and node.op_type in LAYOUTS and _is_stored(_first(node))


def _is_narrow(value: ir.Value | None) -> bool:
    """Whether it is a matrix with a side that is known to be below `NARROW`."""
    if value is None or value.shape is None or len(value.shape) != 2:
        return False
    return any(isinstance(side, int) and side < NARROW for side in value.shape)
