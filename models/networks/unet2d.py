"""The denoiser: diffusers' `UNet2DModel`, called by this project's keyword names."""

from __future__ import annotations

from typing import Any

import diffusers
from torch import Tensor

Base: Any = diffusers.UNet2DModel  # untyped: its attributes are set where a type checker does not see them


class UNet2D(Base):
    """`UNet2DModel` with a forward that takes and returns plain tensors.

    A subclass and not a wrapper, so that configuration and state-dict keys are the library's own:
    public checkpoints of `UNet2DModel` load without a converter.
    """

    def forward(self, sample: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """Predict the noise in `sample`.

        sample: (B, channels, height, width) float32.
        time: (B,) float32, network time 0..999.
        label: (B,) int64, only for a model built with `num_class_embeds`.
        Returns: eps, shaped like `sample`.
        """
        (eps,) = super().forward(sample, time, class_labels=label, return_dict=False)
        prediction: Tensor = eps
        return prediction
