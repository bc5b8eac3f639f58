"""What the launchers of the fused kernels share: keys of noise, and checks of shapes and layouts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NO_NOISE, NOISE_GIVEN, NOISE_KEYED = 0, 1, 2

STARTS, ANCHORS, COPY = 1, 2, 4
"""Bits of `kernels.gather.gather`'s modes: the row's registers start here; what it holds becomes its anchor; it is the
guided copy of another row, and writes the network's input alone."""


PER_WARP = 256
"""Elements a warp: 8 for each thread, which are two loads of 16 bytes in float32 and one in half types."""
MOST_CHANNELS = 16
"""In one tile: 16 halves side by side fill a sector of 32 bytes, and half of the tile lies between two rows' ends at
most."""


class Noise(NamedTuple):
    """Keys of noise that a kernel makes itself, one for each row, int64 `(rows,)`; see `kernels.philox`.

    seeds: the bits of an unsigned 64-bit number. samples, draws: 0..2^32-1.
    """

    seeds: Tensor
    samples: Tensor
    draws: Tensor


class History(NamedTuple):
    """The predictions that rows weight and keep (iDDIM eq. 4), each in a slot of its own of a pool.

    pool: float32 `(capacity, elements)`. slots: int64 `(rows, most)`, of the predictions of the steps before, oldest
    first. weights: float32 `(rows, most)`. counts: int64 `(rows,)`, how many of them a row has. keep: int64 `(rows,)`,
    the slot that this step's prediction gets, or -1.
    """

    pool: Tensor
    slots: Tensor
    weights: Tensor
    counts: Tensor
    keep: Tensor


class Tiling(NamedTuple):
    """How a row is cut into programs.

    layout: "contiguous"; "tiled", where the network's channels come last in memory: a program has a rectangle of
    `tile` channels; "strided", the same where the positions do not fall into whole Philox blocks.
    block: elements a program. programs: for each row.
    """

    layout: str
    channels: int
    positions: int
    tile: int
    block: int
    programs: int
    warps: int

    @property
    def constants(self) -> dict[str, int | str]:
        """The kernels' compile-time arguments for it."""
        return {"CHANNELS": self.channels, "LAYOUT": self.layout, "TILE": self.tile, "BLOCK": self.block}


def tiling(tensor: Tensor | None, elements: int, block: int) -> Tiling:
    """Cut rows of a network's tensor, or where there is none of a pool, into programs of at most `block` elements.

    block: a power of two, 4 or more.

    Raises:
        ValueError: the tensor is neither contiguous nor channels-last.
    """
    channels, last = (1, False) if tensor is None else layout(tensor)
    if not last:
        channels = 1  # its number does not matter, and is not compiled for
    positions = elements // channels
    tile = 1
    if last and positions % 4 == 0:
        tile = min(_power(channels), MOST_CHANNELS)
        block = min(block, tile * max(4, _power(positions)))
        programs = -(-channels // tile) * -(-positions // (block // tile))
    else:
        block = min(block, max(4, _power(elements)))
        programs = -(-elements // block)
    name = "contiguous" if not last else "tiled" if positions % 4 == 0 else "strided"
    return Tiling(name, channels, positions, tile, block, programs, max(1, min(16, block // PER_WARP)))


def _power(number: int) -> int:
    """The smallest power of two that is not below."""
    return 1 << (number - 1).bit_length()


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


def check_like(name: str, tensor: Tensor | None, model: Tensor, rows: int) -> None:
    """Raises ValueError for a network's tensor that has fewer rows, or another shape or memory layout than `model`."""
    if tensor is None:
        return
    have, _ = network_rows(name, tensor)
    if have < rows or tensor.shape[1:] != model.shape[1:] or layout(tensor) != layout(model):
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)} and strides {tensor.stride()}, expected {rows} rows or more as "
            f"in {tuple(model.shape)} with strides {model.stride()}"
        )


def check_keys(rows: int, kind: torch.dtype = torch.int64, **keys: Tensor | None) -> None:
    """Raises ValueError for a tensor that is not one number for each row."""
    for name, key in keys.items():
        if key is not None and (tuple(key.shape) != (rows,) or key.dtype != kind or not key.is_contiguous()):
            raise ValueError(f"{name} is {key.dtype} {tuple(key.shape)}, expected contiguous {kind} ({rows},)")


def check_images(elements: int, images: Tensor | None, image_rows: Tensor | None) -> None:
    """Raises ValueError for images that are not contiguous float32 `(n, elements)`, or have no rows to tell whose."""
    check_pools(elements, images=images)
    if images is not None and image_rows is None:
        raise ValueError("images needs image_rows")


def check_prediction(rows: int, elements: int, prediction: Tensor | None, prediction_rows: Tensor | None) -> None:
    """Raises ValueError for a buffer of predictions that does not fit, or without rows has too few of its own."""
    check_pools(elements, prediction=prediction)
    check_keys(rows, prediction_rows=prediction_rows)
    if prediction is not None and prediction_rows is None and len(prediction) < rows:
        raise ValueError(f"prediction has {len(prediction)} rows, expected {rows} or more without prediction_rows")


def check_history(rows: int, elements: int, history: History | None) -> None:
    """Raises ValueError for a pool of predictions, or slots or weights of some, that do not fit."""
    if history is None:
        return
    check_pools(elements, **{"history.pool": history.pool})
    for name, key in (("history.counts", history.counts), ("history.keep", history.keep)):
        check_keys(rows, torch.int64, **{name: key})
    most = history.slots.shape[1] if history.slots.dim() == 2 else 0
    for name, kind in (("slots", torch.int64), ("weights", torch.float32)):
        tensor: Tensor = getattr(history, name)
        if tuple(tensor.shape) != (rows, most) or tensor.dtype != kind or not tensor.is_contiguous():
            raise ValueError(
                f"history.{name} is {tensor.dtype} {tuple(tensor.shape)}, expected contiguous {kind} ({rows}, {most})"
            )


def noise_arguments(
    noise: Tensor | Noise | None, pool: Tensor, slots: Tensor, *, name: str = "noise"
) -> tuple[int, Tensor, Tensor, Tensor, Tensor]:
    """A kernel's mode of noise, and its pointers: noise, seeds, samples, draws; what is not read stands for the rest.

    Raises:
        ValueError: a key is not int64 `(rows,)`.
    """
    if noise is None:
        return NO_NOISE, pool, slots, slots, slots
    if isinstance(noise, Tensor):
        return NOISE_GIVEN, noise, slots, slots, slots
    check_keys(len(slots), **{f"{name}.{part}": key for part, key in noise._asdict().items()})
    return NOISE_KEYED, pool, *noise


def check_rows(slots: Tensor, coefficients: Tensor, columns: int) -> int:
    """How many rows take part. Raises ValueError where slots or coefficients are not one for each row."""
    rows = len(slots)
    check_keys(rows, slots=slots)
    if tuple(coefficients.shape) != (rows, columns) or coefficients.dtype != torch.float32:
        raise ValueError(
            f"coefficients is {coefficients.dtype} {tuple(coefficients.shape)}, expected float32 ({rows}, {columns})"
        )
    if not coefficients.is_contiguous():
        raise ValueError(f"coefficients has strides {coefficients.stride()}, expected a contiguous tensor")
    return rows
