"""From a traced program to the bytes of one ONNX file, and the guard on what it may hold."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from models.bundle import NetworkSpec

from . import ExportError
from .trace import LITERAL_ELEMENTS

OPSET = 20
ROWS = "rows"
"""Name of the dynamic batch axis of every input and output."""


@dataclass(frozen=True)
class Graph:
    """An ONNX model in memory. repeated: bytes of weights that it holds in more than one layout."""

    data: bytes
    nodes: int
    repeated: int


def to_onnx(program: ExportedProgram, spec: NetworkSpec) -> Graph:
    """Translate a traced network; inputs and outputs get the names and the order of `spec`.

    Raises:
        ExportError: an operator has no translation, or the graph holds a tensor that is no weight.
    """
    names = [tensor.name for tensor in spec.inputs]
    outputs = [tensor.name for tensor in spec.outputs]
    with warnings.catch_warnings():
        # The exporter warns about its own deprecated calls; a user of this command can change none of them.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
        try:
            exported = torch.onnx.export(
                program, dynamo=True, external_data=False, opset_version=OPSET, output_names=outputs, verbose=False
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ExportError(f"no ONNX translation: {_first_cause(error)}") from error
        if exported is None:
            raise ExportError("torch.onnx.export returned nothing")
        model = exported.model_proto
    _strip(model)
    _name_interface(model, names, outputs)
    repeated = check_constants(model, program)
    onnx.checker.check_model(model)
    return Graph(data=model.SerializeToString(deterministic=True), nodes=len(model.graph.node), repeated=repeated)


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


def check_constants(model: onnx.ModelProto, program: ExportedProgram) -> int:
    """Hold every constant of the graph against the weights; returns the bytes of weights held twice.

    Traced graphs are known to bake values in, a gradient above all, and such a graph agrees with torch
    at the traced input. So each constant of floating-point numbers must be a weight in any layout, a value
    that the traced program computes from weights and literals alone, one number repeated, or no larger than
    a literal.

    Raises:
        ExportError: names the constant and its shape.
    """
    known = _KnownValues(program)
    seen: set[str] = set()
    repeated = 0
    for name, array in _constants(model.graph):
        # Whole numbers are shapes and index tables, which the exporter makes by itself.
        if array.dtype.kind != "f" or array.size <= LITERAL_ELEMENTS or np.all(array == array.flat[0]):
            continue
        values = np.sort(array, axis=None)
        if not known.holds(values):
            raise ExportError(
                f"the graph holds a constant {name!r} of shape {array.shape} that is no weight, nor computed from "
                f"weights alone: a value was baked in while tracing"
            )
        digest = _digest(values)
        repeated += array.nbytes if digest in seen else 0
        seen.add(digest)
    return repeated


class _KnownValues:
    """The values that a graph's constants may hold, in any order: a reshaped or transposed weight is that weight."""

    def __init__(self, program: ExportedProgram) -> None:
        self._digests: set[str] = set()
        self._by_size: dict[int, list[npt.NDArray[Any]]] = {}
        for array in _derived_from_weights(program):
            values = np.sort(array, axis=None)
            self._digests.add(_digest(values))
            self._by_size.setdefault(values.size, []).append(values)

    def holds(self, values: npt.NDArray[Any]) -> bool:
        """values: sorted. A weight is found exactly, what was computed from literals (a table of frequencies) to
        rounding: the exporter folds with another library's exp than torch's."""
        return _digest(values) in self._digests or any(
            np.allclose(values, known, rtol=1e-5, atol=1e-7 * float(np.abs(known).max()))
            for known in self._by_size.get(values.size, ())
        )


def _digest(values: npt.NDArray[Any]) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Initializers and tensor attributes of a graph and of the graphs inside it."""
    for tensor in graph.initializer:
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
