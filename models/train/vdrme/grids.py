"""The grids of times that `digits-vdrme` samples on, and their transitions."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ...schedules import alpha_bar, quadratic_grid
from ..ddpm import SCHEDULE

STEPS = (4, 6, 8)


def grid(steps: int) -> tuple[int, ...]:
    """Network times t_K = 999 > ... > t_1 > t_0 = 0: the quadratic grid of SPEC 0, less one, and 0."""
    return (*(t - 1 for t in reversed(quadratic_grid(steps, SCHEDULE.steps))), 0)


GRIDS = {steps: grid(steps) for steps in STEPS}


@dataclass(frozen=True)
class Transitions:
    """Every transition t_{i+1} -> t_i of the grids, one entry each; abar_{t_0} = 1 (the clean prediction is emitted).

    source, target: (n,) float32 network times. abar_source, abar_target: (n,) float64.
    following: (n,) int64, the transition that comes next on its grid, -1 after the last. first: (len(GRIDS),) int64.
    """

    source: Tensor
    target: Tensor
    abar_source: Tensor
    abar_target: Tensor
    following: Tensor
    first: Tensor

    @classmethod
    def of_grids(cls) -> Transitions:
        table = alpha_bar(SCHEDULE)
        pairs: list[tuple[int, int]] = []
        following: list[int] = []
        first: list[int] = []
        for times in GRIDS.values():
            first.append(len(pairs))
            pairs += list(pairwise(times))
            following += [*range(len(following) + 1, len(pairs)), -1]
        abar_target = [1.0 if target == 0 else table[target + 1] for _, target in pairs]
        return cls(
            torch.tensor([float(source) for source, _ in pairs]),
            torch.tensor([float(target) for _, target in pairs]),
            torch.tensor([table[source + 1] for source, _ in pairs], dtype=torch.float64),
            torch.tensor(abar_target, dtype=torch.float64),
            torch.tensor(following),
            torch.tensor(first),
        )
