"""Exponential moving average of a network's weights: what is shipped is the average."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """An average of `network`'s weights that starts fast and slows down to `decay`.

    The n-th update keeps `min(decay, (1 + n)/(10 + n))` of the average, so that a short run forgets its random start.
    """

    def blend(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        keep = min(decay, (1.0 + int(count)) / (10.0 + int(count)))
        return averaged.lerp(current, 1.0 - keep)

    return AveragedModel(network, avg_fn=blend, use_buffers=True)
