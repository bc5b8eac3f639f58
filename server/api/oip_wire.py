"""The Open Inference Protocol's messages <-> arrays and values: tensors, raw or typed, and parameters.

Errors speak as Triton's do: they name the tensor or parameter, say what came and what is accepted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from protos import inference_pb2 as oip

from ..errors import InvalidArgument
from ..names import MAX_LIST, MAX_NAME, check_name

Array = npt.NDArray[Any]

MAX_DIMENSIONS = 8


class Datatype(NamedTuple):
    """A datatype of the protocol: how its elements lie in memory, and the field that lists them."""

    dtype: str
    contents: str
    enum: oip.DataType


DATATYPES = {
    "BOOL": Datatype("|b1", "bool_contents", oip.TYPE_BOOL),
    "INT64": Datatype("<i8", "int64_contents", oip.TYPE_INT64),
    "UINT64": Datatype("<u8", "uint64_contents", oip.TYPE_UINT64),
    "FP32": Datatype("<f4", "fp32_contents", oip.TYPE_FP32),
    "FP64": Datatype("<f8", "fp64_contents", oip.TYPE_FP64),
}


class Tensor(NamedTuple):
    """An input or output of a model.

    shape: of one row, without the batch axis; -1 is any size. accepted: datatypes taken in place of `datatype`.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False
    accepted: tuple[str, ...] = ()


# -- inputs -----------------------------------------------------------------------------------------


def read_inputs(request: oip.ModelInferRequest, tensors: Sequence[Tensor], max_rows: int) -> dict[str, Array]:
    """The inputs of a request by name, each `(rows, *shape)` of its datatype, all with the same number of rows.

    A tensor of shape (1,) a row may come as `[rows]` too.

    Raises:
        InvalidArgument: an unknown, missing or repeated input, or a wrong datatype, shape or number of elements.
    """
    known = {tensor.name: tensor for tensor in tensors}
    given = [tensor.name for tensor in request.inputs]
    for name in given:
        if check_name("inputs", name) not in known:
            raise InvalidArgument(
                "inputs",
                f"unexpected inference input {name!r} for model {request.model_name!r}, "
                f"allowed input names are: {', '.join(known)}",
            )
        if given.count(name) > 1:
            raise InvalidArgument(name, "input comes twice in the request")
    missing = [tensor.name for tensor in tensors if not tensor.optional and tensor.name not in given]
    if missing:
        raise InvalidArgument(
            "inputs", f"got input(s) {given}, but missing required input(s) {missing} of model {request.model_name!r}"
        )
    raw = request.raw_input_contents
    if raw and len(raw) != len(given):
        raise InvalidArgument("raw_input_contents", f"must hold one entry for each of {given}, got {len(raw)}")
    arrays: dict[str, Array] = {}
    for index, message in enumerate(request.inputs):
        arrays[message.name] = _read(message, raw[index] if raw else None, known[message.name], max_rows)
    rows = len(arrays[given[0]])
    for name, array in arrays.items():
        if len(array) != rows:
            raise InvalidArgument(name, f"must hold as many rows as {given[0]}, {rows}, got {len(array)}")
    return arrays


def _read(message: oip.ModelInferRequest.InferInputTensor, raw: bytes | None, tensor: Tensor, max_rows: int) -> Array:
    name = tensor.name
    for parameter in message.parameters:
        if parameter.startswith("shared_memory"):
            raise InvalidArgument(name, "shared memory is not offered; send the contents with the request")
    datatypes = (tensor.datatype, *tensor.accepted)
    if check_name(name, message.datatype) not in datatypes:
        raise InvalidArgument(name, f"data-type must be {' or '.join(datatypes)}, got {message.datatype!r}")
    if len(message.shape) > MAX_DIMENSIONS:
        raise InvalidArgument(name, f"shape must hold at most {MAX_DIMENSIONS} sizes, got {len(message.shape)}")
    shape = tuple(message.shape)
    rows, row = (shape[0] if shape else 0), (shape[1:] or (1,))
    if not shape or row != tensor.shape:
        expected = ", ".join(map(str, (-1, *tensor.shape)))
        raise InvalidArgument(name, f"shape must be [{expected}], got {list(shape)}")
    if not 1 <= rows <= max_rows:
        raise InvalidArgument(name, f"batch size must be within 1..{max_rows}, got {rows}")
    kind = DATATYPES[message.datatype]
    count = rows * math.prod(row)
    if raw is None:
        elements = getattr(message.contents, kind.contents)
        if len(elements) != count:
            raise InvalidArgument(
                name, f"must hold {count} elements in contents.{kind.contents} for its shape, got {len(elements)}"
            )
        return np.array(elements, dtype=kind.dtype).reshape(rows, *row)
    if message.HasField("contents"):
        raise InvalidArgument(name, "contents must not be set where raw_input_contents is used")
    wanted = count * np.dtype(kind.dtype).itemsize
    if len(raw) != wanted:
        raise InvalidArgument(name, f"must hold {wanted} bytes for its shape and data-type, got {len(raw)}")
    return np.frombuffer(raw, dtype=kind.dtype).reshape(rows, *row)


# -- outputs ----------------------------------------------------------------------------------------


def requested_outputs(request: oip.ModelInferRequest, tensors: Sequence[Tensor]) -> tuple[str, ...]:
    """The names of the outputs asked for, in the request's order; empty where it leaves the choice to the server.

    Raises:
        InvalidArgument: an unknown output, or one asked for in a form that is not offered.
    """
    known = [tensor.name for tensor in tensors]
    for output in request.outputs:
        if check_name("outputs", output.name) not in known:
            raise InvalidArgument(
                "outputs",
                f"unexpected inference output {output.name!r} for model {request.model_name!r}, "
                f"allowed output names are: {', '.join(known)}",
            )
        for parameter in output.parameters:
            check_name("outputs", parameter)
            if parameter == "classification" or parameter.startswith("shared_memory"):
                raise InvalidArgument(output.name, f"{parameter} is not offered")
    return tuple(dict.fromkeys(output.name for output in request.outputs))


def write_outputs(response: oip.ModelInferResponse, tensors: Iterable[Tensor], arrays: Mapping[str, Array]) -> None:
    """Put `(rows, ...)` arrays into a response as raw contents."""
    datatypes = {tensor.name: tensor.datatype for tensor in tensors}
    for name, array in arrays.items():
        response.outputs.add(name=name, datatype=datatypes[name], shape=array.shape)
        contents = np.ascontiguousarray(array, dtype=DATATYPES[datatypes[name]].dtype)
        response.raw_output_contents.append(contents.tobytes())


# -- parameters -------------------------------------------------------------------------------------

# Clients of the first protocol can send bool, int64 and text: a number may come as text, a list always does.
Reader = Callable[[Any], Any]


def read_parameters(request: oip.ModelInferRequest, readers: Mapping[str, Reader]) -> dict[str, Any]:
    """The parameters of a request, by name.

    Raises:
        InvalidArgument: an unknown one, or one of the wrong kind.
    """
    values = {}
    for name, parameter in request.parameters.items():
        if check_name("parameters", name) not in readers:
            raise InvalidArgument(
                "parameters",
                f"unexpected parameter {name!r} for model {request.model_name!r}, "
                f"allowed parameters are: {', '.join(readers)}",
            )
        choice = parameter.WhichOneof("parameter_choice")
        given = getattr(parameter, choice) if choice is not None else None
        try:
            values[name] = readers[name](given)
        except ValueError as error:
            got = f"{len(given)} characters" if isinstance(given, str) and len(given) > MAX_NAME else repr(given)
            raise InvalidArgument(name, f"{error}, got {got}") from None
    return values


def write_parameters(response: oip.ModelInferResponse, values: Mapping[str, str | int | float]) -> None:
    """Add values to a response, each as what it is."""
    for name, value in values.items():
        if isinstance(value, str):
            response.parameters[name].string_param = value
        elif isinstance(value, float):
            response.parameters[name].double_param = value
        elif value < 2**63:
            response.parameters[name].int64_param = value
        else:
            response.parameters[name].uint64_param = value


def integer(low: int, high: int) -> Reader:
    """A reader of integers within low..high."""

    def read(given: Any) -> int:
        if isinstance(given, bool) or not isinstance(given, int | str):
            raise ValueError("must be an integer")
        try:
            value = int(given)
        except ValueError:
            raise ValueError("must be an integer") from None
        if not low <= value <= high:
            raise ValueError(f"must be within {low}..{high}")
        return value

    return read


def number(given: Any) -> float:
    """A number, also as text. Raises ValueError."""
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        raise ValueError("must be a number")
    try:
        return float(given)
    except ValueError:
        raise ValueError("must be a number") from None


def numbers(given: Any) -> list[float]:
    """Numbers separated by commas, or one number. Raises ValueError."""
    if isinstance(given, str) and given.count(",") >= MAX_LIST:
        raise ValueError(f"must hold at most {MAX_LIST} numbers")
    try:
        return [number(part) for part in (given.split(",") if isinstance(given, str) else [given])]
    except ValueError:
        raise ValueError("must be a number, or text of numbers with commas between") from None


def rows_of_numbers(given: Any) -> list[list[float]]:
    """Rows separated by semicolons, of numbers separated by commas. Raises ValueError."""
    if text(given).count(";") >= MAX_LIST:
        raise ValueError(f"must hold at most {MAX_LIST} rows")
    try:
        return [numbers(row) for row in text(given).split(";")]
    except ValueError:
        raise ValueError("must be text: rows with semicolons between, of numbers with commas between") from None


def text(given: Any) -> str:
    """Text. Raises ValueError."""
    if not isinstance(given, str):
        raise ValueError("must be text")
    return given


def names(given: Any) -> list[str]:
    """Names separated by commas. Raises ValueError."""
    if text(given).count(",") >= MAX_LIST:
        raise ValueError(f"must hold at most {MAX_LIST} names")
    return [name.strip() for name in text(given).split(",")]


def flag(given: Any) -> bool:
    """True or false. Raises ValueError."""
    if not isinstance(given, bool):
        raise ValueError("must be true or false")
    return given
