"""Tensors for engines that are given addresses: what is wrong with one must be found before memory is read there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from models.card import NetworkSpec

from . import EngineError

DTYPES = {"float32": torch.float32, "int64": torch.int64}


def checked_inputs(spec: NetworkSpec, inputs: Mapping[str, Tensor], device: torch.device) -> list[Tensor]:
    """The inputs in the order of the specification, contiguous.

    Raises:
        EngineError: an input is missing, or its type, shape, number of rows or device is another one.
    """
    found = []
    rows = None
    for tensor in spec.inputs:
        value = inputs.get(tensor.name)
        if value is None:
            raise EngineError(f"input {tensor.name!r} is missing; there are {sorted(inputs)}")
        rows = value.shape[0] if rows is None and value.dim() else rows
        if value.dtype != DTYPES[tensor.dtype] or value.shape != (rows, *tensor.shape) or value.device != device:
            raise EngineError(
                f"input {tensor.name!r} is {value.dtype} {tuple(value.shape)} on {value.device}, "
                f"expected {tensor.dtype} {(rows, *tensor.shape)} on {device}"
            )
        found.append(value.contiguous())
    return found


def new_outputs(spec: NetworkSpec, inputs: Sequence[Tensor], device: torch.device) -> tuple[Tensor, ...]:
    """Memory for the outputs, for as many rows as the inputs have."""
    rows = inputs[0].shape[0]
    return tuple(torch.empty(rows, *tensor.shape, device=device) for tensor in spec.outputs)
