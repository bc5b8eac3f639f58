"""The memory bandwidth of a GPU, measured."""

from __future__ import annotations

import statistics

import torch

BYTES = 1 << 30
REPEATS = 20


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written a second by a large copy on the device: the median of CUDA events."""
    source = torch.empty(BYTES, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    seconds = []
    with torch.cuda.device(device):
        for _ in range(REPEATS):
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            target.copy_(source)
            ended.record()
            ended.synchronize()
            seconds.append(began.elapsed_time(ended) / 1000.0)
    return 2 * BYTES / statistics.median(seconds[3:])
