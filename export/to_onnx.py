"""From a traced program to the bytes of one ONNX file, and the guard on what it may hold."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir
import torch
from onnx import numpy_helper
from safetensors.numpy import save_file
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from models.card import NetworkSpec

from . import ExportError
from .precision import HALF, lower
from .trace import LITERAL_ELEMENTS

OPSET = 20
BFLOAT16_OPSET = 22
"""The first in which convolutions and pools take bfloat16."""
ROWS = "rows"
"""Name of the dynamic batch axis of every input and output."""
INLINE_BYTES = 1 << 30
"""A graph with more weights than this has them in a file beside it: an ONNX file is one protobuf message, which ends at
2 GiB, and is read as a whole."""

Array = npt.NDArray[Any]
NONE: Mapping[str, Array] = MappingProxyType({})


@dataclass(frozen=True)
class Graph:
    """An ONNX model in memory.

    large: its weights are in the file beside it. repeated: bytes of weights that there are in more than one layout.
    """

    data: bytes
    large: bool
    nodes: int
    repeated: int


def opset_of(precision: str) -> int:
    return BFLOAT16_OPSET if precision == "bfloat16" else OPSET


def to_onnx(program: ExportedProgram, spec: NetworkSpec, beside: Path, precision: str = "float32") -> Graph:
    """Translate a traced network; inputs and outputs get the names and the order of `spec`.

    beside: the safetensors file that is written where the weights are too large for the graph. precision: see
    `export.precision`.

    Raises:
        ExportError: an operator has no translation, or the graph holds a tensor that is no weight.
    """
    names = [tensor.name for tensor in spec.inputs]
    outputs = [tensor.name for tensor in spec.outputs]
    with warnings.catch_warnings():
        # The exporter warns about its own deprecated calls; a user of this command can change none of them.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
        opset = opset_of(precision)
        try:
            exported = torch.onnx.export(
                program, dynamo=True, external_data=False, opset_version=opset, output_names=outputs, verbose=False
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ExportError(f"no ONNX translation: {_first_cause(error)}") from error
        if exported is None:
            raise ExportError("torch.onnx.export returned nothing")
        if precision != "float32":
            lower(exported.model, precision)
        weights = _take_out(exported.model, beside)
        model = exported.model_proto
    _strip(model)
    _name_interface(model, names, outputs)
    repeated = check_constants(model, program, weights, precision)
    # A full check infers all types, which half precision has changed.
    onnx.checker.check_model(_with_weights_as_inputs(model, weights), full_check=precision != "float32")
    return Graph(model.SerializeToString(deterministic=True), bool(weights), len(model.graph.node), repeated)


def _take_out(model: onnx_ir.Model, beside: Path) -> dict[str, Array]:
    """Write the weights of a large graph to the file beside it, and leave in the graph where in that file they are.

    That is ONNX's external data, by the name of a file in the same directory.
    """
    tensors = {name: value.const_value for name, value in model.graph.initializers.items() if value.const_value}
    if sum(tensor.nbytes for tensor in tensors.values()) <= INLINE_BYTES:
        return {}
    large = {name: tensor.numpy() for name, tensor in tensors.items() if tensor.size > LITERAL_ELEMENTS}
    weights = {name: np.ascontiguousarray(array) for name, array in large.items()}  # the file takes no views
    save_file(weights, beside)
    for name, (begin, end) in _places(beside).items():
        tensor = tensors[name]
        model.graph.initializers[name].const_value = onnx_ir.ExternalTensor(
            beside.name, begin, end - begin, tensor.dtype, shape=onnx_ir.Shape(tensor.shape.numpy()), name=name
        )
    return weights


def _places(path: Path) -> dict[str, tuple[int, int]]:
    """Where in a safetensors file each tensor begins and ends: behind 8 bytes with the header's length, and that."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    offsets = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    return {name: (8 + length + begin, 8 + length + end) for name, (begin, end) in offsets.items()}


def _with_weights_as_inputs(model: onnx.ModelProto, weights: Iterable[str]) -> onnx.ModelProto:
    """The model as it can be checked without the file beside it."""
    outside = set(weights)
    if not outside:
        return model
    checked = onnx.ModelProto()
    checked.CopyFrom(model)
    inside = [tensor for tensor in model.graph.initializer if tensor.name not in outside]
    del checked.graph.initializer[:]
    checked.graph.initializer.extend(inside)
    checked.graph.input.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in model.graph.initializer
        if tensor.name in outside
    )
    return checked


def _first_cause(error: BaseException) -> str:
    """The innermost message in one line; the exporter wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300]


def _strip(model: onnx.ModelProto) -> None:
    """Drop what is not computed with: inferred shapes, and stack traces (paths of this machine, 1.5 kB a node)."""
    del model.metadata_props[:]
    graph = model.graph
    graph.doc_string = ""
    del graph.metadata_props[:], graph.value_info[:]
    items: tuple[Any, ...] = (*graph.node, *graph.input, *graph.output, *graph.initializer)
    for item in items:
        item.doc_string = ""
        del item.metadata_props[:]


def _name_interface(model: onnx.ModelProto, inputs: list[str], outputs: list[str]) -> None:
    """Order the inputs as the spec does and name every first axis `rows`."""
    by_name = {value.name: value for value in model.graph.input}
    if set(by_name) != set(inputs):
        raise ExportError(f"the traced graph takes {sorted(by_name)}, the card says {sorted(inputs)}")
    ordered = [onnx.ValueInfoProto.FromString(by_name[name].SerializeToString()) for name in inputs]
    del model.graph.input[:]
    model.graph.input.extend(ordered)
    if [value.name for value in model.graph.output] != outputs:
        raise ExportError(
            f"the traced graph returns {[value.name for value in model.graph.output]}, the card says {outputs}"
        )
    for value in (*model.graph.input, *model.graph.output):
        first = value.type.tensor_type.shape.dim[0]
        if first.HasField("dim_value"):
            raise ExportError(f"{value.name}: the batch axis was fixed to {first.dim_value} while tracing")
        first.dim_param = ROWS


def check_constants(
    model: onnx.ModelProto, program: ExportedProgram, weights: Mapping[str, Array] = NONE, precision: str = "float32"
) -> int:
    """Hold every constant of the graph against the weights; returns the bytes of weights held twice.

    weights: constants that are in the file beside the graph. precision: that the graph's weights may be rounded to.

    Traced graphs are known to bake values in, a gradient above all, and such a graph agrees with torch
    at the traced input. So each constant of floating-point numbers must be a weight in any layout, a value
    that the traced program computes from weights and literals alone, one number repeated, or no larger than
    a literal.

    Raises:
        ExportError: names the constant and its shape.
    """
    known = _KnownValues(program, HALF[precision].numpy() if precision in HALF else None)
    seen: set[str] = set()
    repeated = 0
    for name, array in chain(weights.items(), _constants(model.graph)):
        # Whole numbers are shapes and index tables, which the exporter makes by itself.
        rounded = known.half is not None and array.dtype == known.half
        if (array.dtype.kind != "f" and not rounded) or array.size <= LITERAL_ELEMENTS:
            continue
        values = np.sort(array.astype(np.float32) if rounded else array, axis=None)
        if values[0] == values[-1]:
            continue
        if not known.holds(values, rounded):
            raise ExportError(
                f"the graph holds a constant {name!r} of shape {array.shape} that is no weight, nor computed from "
                f"weights alone: a value was baked in while tracing"
            )
        digest = _digest(values)
        repeated += array.nbytes if digest in seen else 0
        seen.add(digest)
    return repeated


class _KnownValues:
    """The values that a graph's constants may hold, in any order: a reshaped or transposed weight is that weight.

    half: a type that they may be rounded to.
    """

    def __init__(self, program: ExportedProgram, half: np.dtype[Any] | None) -> None:
        self.half = half
        self._digests: set[str] = set()
        self._by_size: dict[int, list[Array]] = {}
        for array in _derived_from_weights(program):
            values = np.sort(array, axis=None)
            digest = _digest(values)
            if digest not in self._digests:  # else a weight in another layout, which may take a gigabyte
                self._digests.add(digest)
                if half is not None and values.dtype == np.float32:
                    with np.errstate(over="ignore"):
                        self._digests.add(_digest(values.astype(half).astype(np.float32)))
                self._by_size.setdefault(values.size, []).append(values)

    def holds(self, values: Array, rounded: bool) -> bool:
        """values: sorted. rounded: they were of the half type.

        A weight is found exactly, what was computed from literals (a table of frequencies) to rounding: the exporter
        folds with another library's exp than torch's.
        """
        close = float(ml_dtypes.finfo(self.half).eps) if self.half is not None and rounded else 1e-5
        return _digest(values) in self._digests or any(
            np.allclose(values, known, rtol=close, atol=1e-7 * float(np.abs(known).max()))
            for known in self._by_size.get(values.size, ())
        )


def _digest(values: Array) -> str:
    return hashlib.sha256((values + 0).tobytes()).hexdigest()  # + 0 makes -0.0 what it equals


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Initializers and tensor attributes of a graph and of the graphs inside it."""
    for tensor in graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            yield tensor.name, numpy_helper.to_array(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield node.name or node.output[0], numpy_helper.to_array(attribute.t)
            elif attribute.type == onnx.AttributeProto.GRAPH:
                yield from _constants(attribute.g)


def _derived_from_weights(program: ExportedProgram) -> Iterator[npt.NDArray[Any]]:
    """The weights, and every value of the program that depends on no input: what an exporter may fold."""
    tensors = {**program.state_dict, **program.constants}
    inputs = program.graph_signature.input_specs
    weights: Mapping[str, Any] = {
        spec.arg.name: tensors[spec.target]
        for spec in inputs
        if spec.kind != InputKind.USER_INPUT and spec.target is not None and hasattr(spec.arg, "name")
    }
    values: dict[fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in weights:
            values[node] = weights[node.name]
        elif node.op == "call_function" and all(argument in values for argument in node.all_input_nodes):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
        else:
            continue
        if isinstance(values[node], Tensor):
            yield values[node].detach().numpy()
