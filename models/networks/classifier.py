"""A small classifier whose penultimate layer is the feature space of FD-digits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread, then restore the setting, which is the process's.

    At this size threads wait for each other longer than they compute (2.4 times slower on two busy cores),
    and on one thread sums come out in the same order on any number of cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Classifier(nn.Module):
    """Three convolutions, one hidden layer, one logit a class.

    No normalisation layer, so that features are a fixed function of one image: they depend neither on
    the company in a batch nor on statistics gathered while training.
    """

    def __init__(
        self,
        channels: int = 1,
        size: int = 8,
        classes: int = 10,
        width: int = 16,
        features: int = 64,
        dropout: float = 0.3,
    ) -> None:
        """
        channels, size: the images are (channels, size, size); `size` must be even.
        width: channels of the first convolution; the other two have twice as many.
        features: dimension of the penultimate layer.
        dropout: probability on the input of both linear layers, in training only.
        """
        if size % 2:
            raise ValueError(f"size must be even, got {size}")
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(2 * width * (size // 2) ** 2, features),
            nn.SiLU(),
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(features, classes)

    def features(self, sample: Tensor) -> Tensor:
        """Penultimate activations. sample: (B, channels, size, size) in [-1, 1]. Returns: (B, features)."""
        activations: Tensor = self.body(sample)
        return activations

    def forward(self, sample: Tensor) -> Tensor:
        """Logits. sample: (B, channels, size, size) in [-1, 1]. Returns: (B, classes)."""
        logits: Tensor = self.head(self.dropout(self.features(sample)))
        return logits
