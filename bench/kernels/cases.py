"""What is measured: each kernel in what it does for the server, its sizes, and the bytes that it cannot do without."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod

import torch

FLOAT = 4
"""Bytes of a number in the pools."""

VARIANTS = {
    "ensemble": ("plain", "guided", "accumulator", "noise"),
    "langevin": ("no clip", "clip"),
    "gather": ("no start", "start"),
}
SIZES = ((64, 256), (32, 256), (32, 128), (64, 64), (32, 32))
"""Rows, and the side of a square of three channels; the largest first."""
QUICK_SIZES = ((64, 256), (32, 32))
CPU_SIZES = ((32, 64), (32, 32))
"""Where plain torch makes the noise, some hundred nanoseconds an element."""
TYPES = ((torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True))
"""Types of the network's tensors, and whether their channels come last."""
QUICK_TYPES = ((torch.float32, False), (torch.bfloat16, True))


@dataclass(frozen=True, slots=True)
class Case:
    """One launch: rows of images `shape`, which the network takes and gives in `dtype`, channels last or not."""

    kernel: str
    variant: str
    rows: int
    shape: tuple[int, int, int]
    dtype: torch.dtype
    channels_last: bool

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Each input read once and each output written once; coefficients, keys and flags are not counted.

        ensemble:  state read and written, the network's output; guided: the unconditional output, too;
                   accumulator: read and written, too; noise: made in place, no bytes
        langevin:  state read and written, the gradient (once, though it is clipped to its norm)
        gather:    no start: state read, the network's input written;
                   start: state, anchor and the network's input written
        """
        network = self.dtype.itemsize
        each = {
            ("ensemble", "plain"): 2 * FLOAT + network,
            ("ensemble", "guided"): 2 * FLOAT + 2 * network,
            ("ensemble", "accumulator"): 4 * FLOAT + network,
            ("ensemble", "noise"): 2 * FLOAT + network,
            ("langevin", "no clip"): 2 * FLOAT + network,
            ("langevin", "clip"): 2 * FLOAT + network,
            ("gather", "no start"): FLOAT + network,
            ("gather", "start"): 2 * FLOAT + network,
        }
        return self.rows * self.elements * each[self.kernel, self.variant]

    @property
    def name(self) -> str:
        """The case in one line."""
        size = "x".join(str(n) for n in self.shape)
        return f"{self.kernel}, {self.variant}: {self.rows} x ({size}), {self.type_name}"

    @property
    def type_name(self) -> str:
        """The network's type, and its layout where it is not the usual one."""
        return str(self.dtype).removeprefix("torch.") + (", channels last" if self.channels_last else "")


def all_cases(*, quick: bool, sizes: tuple[tuple[int, int], ...] | None = None) -> list[Case]:
    """Every kernel at every size, by size and type, so that a measurement cut short has all kernels at some sizes."""
    sizes = sizes or (QUICK_SIZES if quick else SIZES)
    variants = [(kernel, variant) for kernel, names in VARIANTS.items() for variant in names]
    return [
        Case(kernel, variant, rows, (3, side, side), dtype, last)
        for (rows, side), (dtype, last) in product(sizes, QUICK_TYPES if quick else TYPES)
        for kernel, variant in variants
    ]
