"""Without a GPU the fused kernels run in Triton's interpreter; this must be decided before they are imported."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
