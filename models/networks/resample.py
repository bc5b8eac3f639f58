"""Resampling by the binomial filter (1, 3, 3, 1), as in StyleGAN2 and NCSN++, written as plain convolutions.

As convolutions they export, gradients included, where an interpolation's gradient does not.
Halving and doubling an even side; beyond the border the image is zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Halve(nn.Module):
    """(B, channels, height, width) -> (B, channels, height/2, width/2): filtered, then every second pixel."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("kernel", _kernel(channels))

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.conv2d(hidden, self.kernel, stride=2, padding=1, groups=hidden.shape[1])


class Double(nn.Module):
    """(B, channels, height, width) -> (B, channels, 2 height, 2 width): bilinear, apart from the border."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("kernel", 4.0 * _kernel(channels))

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.conv_transpose2d(hidden, self.kernel, stride=2, padding=1, groups=hidden.shape[1])


class HalvingConvolution(nn.Module):
    """A 3x3 convolution of stride 2 after the filter, which keeps it from aliasing."""

    kernel: Tensor

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("kernel", _kernel(channels))
        self.convolution = nn.Conv2d(channels, outputs, 3, stride=2)

    def forward(self, hidden: Tensor) -> Tensor:
        blurred = functional.conv2d(hidden, self.kernel, padding=2, groups=hidden.shape[1])
        halved: Tensor = self.convolution(blurred)
        return halved


def _kernel(channels: int) -> Tensor:
    row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8.0
    return torch.outer(row, row).expand(channels, 1, 4, 4).clone()
