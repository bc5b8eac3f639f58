"""What the launchers of the fused kernels share: keys of noise, and checks of shapes and layouts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NO_NOISE, NOISE_GIVEN, NOISE_KEYED = 0, 1, 2


class Noise(NamedTuple):
    """Keys of noise that a kernel makes itself, one for each row, int64 `(rows,)`; see `kernels.philox`.

    seeds: the bits of an unsigned 64-bit number. samples, draws: 0..2^32-1.
    """

    seeds: Tensor
    samples: Tensor
    draws: Tensor


def network_rows(name: str, tensor: Tensor) -> tuple[int, int]:
    """Rows, and elements a row, of a network's tensor.

    Raises:
        ValueError: no rows, or not one of the types that the kernels read.
    """
    if tensor.dim() < 2 or tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(
            f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected (rows, ...) of float32, bfloat16 or float16"
        )
    return tensor.shape[0], tensor[0].numel()


def layout(tensor: Tensor) -> tuple[int, bool]:
    """Channels of a network's tensor, and whether they come last in memory.

    Raises:
        ValueError: neither contiguous nor channels-last.
    """
    channels = tensor.shape[1]
    if tensor.is_contiguous():
        return channels, False
    if tensor.dim() > 2 and tensor.movedim(1, -1).is_contiguous():
        return channels, True
    raise ValueError(f"a tensor of shape {tuple(tensor.shape)} is neither contiguous nor channels-last")


def check_pools(elements: int, **pools: Tensor | None) -> None:
    """Raises ValueError for a pool that is not contiguous float32 `(capacity, elements)`."""
    for name, pool in pools.items():
        if pool is None:
            continue
        if pool.dim() != 2 or pool.shape[1] != elements or pool.dtype != torch.float32 or not pool.is_contiguous():
            raise ValueError(
                f"{name} is {pool.dtype} {tuple(pool.shape)}, expected contiguous float32 (capacity, {elements})"
            )


def check_flat(rows: int, elements: int, **tensors: Tensor | None) -> None:
    """Raises ValueError for a tensor that is not contiguous float32 `(rows, elements)`."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != (rows, elements) or tensor.dtype != torch.float32 or not tensor.is_contiguous():
            raise ValueError(
                f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected contiguous float32 ({rows}, {elements})"
            )


def check_like(name: str, tensor: Tensor | None, model: Tensor) -> None:
    """Raises ValueError for a network's tensor that differs in shape or memory layout from another one."""
    if tensor is not None and (tensor.shape != model.shape or tensor.stride() != model.stride()):
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)} and strides {tensor.stride()}, "
            f"expected {tuple(model.shape)} and {model.stride()}"
        )
    if tensor is not None:
        network_rows(name, tensor)


def noise_arguments(
    noise: Tensor | Noise | None, pool: Tensor, slots: Tensor
) -> tuple[int, Tensor, Tensor, Tensor, Tensor]:
    """A kernel's mode of noise, and its pointers: noise, seeds, samples, draws; what is not read stands for the rest.

    Raises:
        ValueError: a key is not int64 `(rows,)`.
    """
    if noise is None:
        return NO_NOISE, pool, slots, slots, slots
    if isinstance(noise, Tensor):
        return NOISE_GIVEN, noise, slots, slots, slots
    for name, key in zip(Noise._fields, noise, strict=True):
        if key.shape != slots.shape or key.dtype != torch.int64:
            raise ValueError(f"noise.{name} is {key.dtype} {tuple(key.shape)}, expected int64 {tuple(slots.shape)}")
    return NOISE_KEYED, pool, *noise


def check_rows(rows: int, slots: Tensor, coefficients: Tensor, columns: int) -> None:
    """Raises ValueError where slots or coefficients are not one for each row."""
    if tuple(slots.shape) != (rows,) or slots.dtype != torch.int64:
        raise ValueError(f"slots is {slots.dtype} {tuple(slots.shape)}, expected int64 ({rows},)")
    if tuple(coefficients.shape) != (rows, columns) or coefficients.dtype != torch.float32:
        raise ValueError(
            f"coefficients is {coefficients.dtype} {tuple(coefficients.shape)}, expected float32 ({rows}, {columns})"
        )
