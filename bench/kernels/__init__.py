"""The fused kernels, measured: `measure.measure_kernels`, and `python -m bench kernels`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .measure import measure_kernels as measure_kernels


def __getattr__(name: str) -> object:
    """`measure_kernels` when it is asked for: the other measurements go without torch."""
    if name == "measure_kernels":
        from .measure import measure_kernels

        return measure_kernels
    raise AttributeError(f"module {__name__} has no attribute {name}")
