"""What engines ask torch about a GPU."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import NamedTuple

import torch


class Gpu(NamedTuple):
    """A model of GPU: its name, and its compute capability such as `9.0`."""

    name: str
    capability: str


def describe(device: torch.device) -> Gpu:
    properties = torch.cuda.get_device_properties(device)
    return Gpu(properties.name, f"{properties.major}.{properties.minor}")


def selected(device: torch.device) -> AbstractContextManager[object]:
    """Make it CUDA's current device, which libraries build and allocate on."""
    return torch.cuda.device(device)


def current_stream(device: torch.device) -> int:
    """The handle of torch's current stream there."""
    return torch.cuda.current_stream(device).cuda_stream


def capturing(device: torch.device) -> bool:
    """Whether torch's current stream there is being captured into a graph."""
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()
