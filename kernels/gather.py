"""What stands before a network: rows start, keep their anchors and fill the network's input, in one launch.

`kernels.reference.gather` and `kernels.reference.normal_` are the twins.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import normal, tile
from .launch import ANCHORS, COPY, STARTS, check_images, check_keys, check_pools, network_rows, tiling

BLOCK = 1024

_STARTS: tl.constexpr = tl.constexpr(STARTS)
_ANCHORS: tl.constexpr = tl.constexpr(ANCHORS)
_COPY: tl.constexpr = tl.constexpr(COPY)


@triton.jit
def _gather_kernel(  # type: ignore[no-untyped-def]
    state,
    slots,
    network_input,
    anchor,
    modes,
    accumulator,
    stds,
    images,
    image_rows,
    seeds,
    samples,
    draws,
    elements,
    positions,
    ACCUMULATES: tl.constexpr,
    IMAGES: tl.constexpr,
    WRITES_INPUT: tl.constexpr,
    CHANNELS: tl.constexpr,
    LAYOUT: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    element, inside, place, block = tile(elements, positions, CHANNELS, LAYOUT, TILE, BLOCK)
    in_pool = tl.load(slots + row) * elements
    mode = tl.load(modes + row)
    owns = (mode & _COPY) == 0
    if (mode & _STARTS) != 0:
        x = tl.zeros(element.shape, tl.float32)
        std = tl.load(stds + row)
        if std != 0.0:
            x += std * normal(tl.load(seeds + row), tl.load(samples + row), tl.load(draws + row), block)
        if IMAGES:
            image = tl.load(image_rows + row)
            if image >= 0:
                x += tl.load(images + image * elements + element, mask=inside, other=0.0)
        if owns:
            tl.store(state + in_pool + element, x, mask=inside)
            if ACCUMULATES:
                tl.store(accumulator + in_pool + element, x, mask=inside)
    else:
        x = tl.load(state + in_pool + element, mask=inside, other=0.0)
    if owns & ((mode & (_STARTS | _ANCHORS)) != 0):
        tl.store(anchor + in_pool + element, x, mask=inside)
    if WRITES_INPUT:
        tl.store(network_input + row * elements + place, x, mask=inside)


@triton.jit
def _normal_kernel(  # type: ignore[no-untyped-def]
    out,
    seeds,
    samples,
    draws,
    elements,
    positions,
    CHANNELS: tl.constexpr,
    LAYOUT: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    _, inside, place, block = tile(elements, positions, CHANNELS, LAYOUT, TILE, BLOCK)
    values = normal(tl.load(seeds + row), tl.load(samples + row), tl.load(draws + row), block)
    tl.store(out + row * elements + place, values, mask=inside)


def gather(
    state: Tensor,
    slots: Tensor,
    network_input: Tensor | None = None,
    *,
    anchor: Tensor,
    modes: Tensor,
    accumulator: Tensor | None = None,
    stds: Tensor,
    images: Tensor | None = None,
    image_rows: Tensor | None = None,
    seeds: Tensor,
    samples: Tensor,
    draws: Tensor,
) -> None:
    """Start rows, set anchors and fill the network's input, one network row for each entry of `slots`.

    state, anchor, accumulator: pools `(capacity, elements)` float32. slots: `(rows,)` int64, distinct among the rows
    that write to their slots. modes: `(rows,)` int64, bits of `kernels.launch`:

        x = std n + image with STARTS, and state[slot] = anchor[slot] = accumulator[slot] = x
        x = state[slot]   else, and anchor[slot] = x with ANCHORS
        network_input[r] = x

    A row with COPY is the guided copy of another row of the launch, with all that the other has: it works x out
    by itself, as what the other writes need not be there yet, and writes network_input alone. So does a row with mode
    0; those that pad a batch have it.
    stds: `(rows,)` float32; 0: no noise is made. seeds, samples, draws: `(rows,)` int64, the noise's keys, see
    `kernels.philox`. images: `(n, elements)` float32, with image_rows `(rows,)` int64, where each row's is; -1: none.
    network_input: `(rows or more, channels, *positions)` or `(rows or more, elements)`, float32, bfloat16 or float16,
    contiguous or channels-last.

    Raises:
        ValueError: a shape or a type does not fit; names the argument.
    """
    rows, elements = len(slots), state.shape[-1]
    check_pools(elements, state=state, anchor=anchor, accumulator=accumulator)
    check_keys(rows, slots=slots, modes=modes, seeds=seeds, samples=samples, draws=draws, image_rows=image_rows)
    check_keys(rows, torch.float32, stds=stds)
    check_images(elements, images, image_rows)
    if network_input is not None and (have := network_rows("network_input", network_input))[1] != elements:
        raise ValueError(f"network_input is {tuple(network_input.shape)}, expected ({rows} or more, {elements} in all)")
    if network_input is not None and have[0] < rows:
        raise ValueError(f"network_input has {have[0]} rows, expected {rows} or more")
    cut = tiling(network_input, elements, BLOCK)
    _gather_kernel[(cut.programs, rows)](
        state,
        slots,
        state if network_input is None else network_input,
        anchor,
        modes,
        state if accumulator is None else accumulator,
        stds,
        state if images is None else images,
        slots if image_rows is None else image_rows,
        seeds,
        samples,
        draws,
        elements,
        cut.positions,
        ACCUMULATES=accumulator is not None,
        IMAGES=images is not None,
        WRITES_INPUT=network_input is not None,
        **cut.constants,
        num_warps=cut.warps,
    )


def normal_(out: Tensor, seeds: Tensor, samples: Tensor, draws: Tensor) -> None:
    """Fill `out` with the standard normals of `kernels.philox`, in logical element order, rounded to its type.

    out: `(rows, ...)` float32, bfloat16 or float16, contiguous or channels-last. seeds, samples, draws: `(rows,)`
    int64.

    Raises:
        ValueError: a shape or a type does not fit; names the argument.
    """
    rows, elements = network_rows("out", out)
    check_keys(rows, seeds=seeds, samples=samples, draws=draws)
    cut = tiling(out, elements, BLOCK)
    _normal_kernel[(cut.programs, rows)](
        out, seeds, samples, draws, elements, cut.positions, **cut.constants, num_warps=cut.warps
    )
