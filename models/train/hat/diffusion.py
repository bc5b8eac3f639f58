"""The truncated diffusion of Hat Diffusion EBM and its progressive distillation to one step (section 3.1)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ...networks.hat import SCHEDULE, Denoiser
from ...schedules import alpha_bar
from ..ddpm import diffuse, learning_rate_factor
from ..ema import moving_average

Tell = Callable[[int, str], None]
"""Called with (steps done of this part, losses as text)."""

TABLE = torch.tensor(alpha_bar(SCHEDULE))


def train_truncated(
    images: Tensor,
    denoiser: Denoiser,
    *,
    steps: int,
    batch: int,
    rate: float,
    ema: float,
    random: torch.Generator,
    tell: Tell,
) -> Denoiser:
    """Eq. 5 for t uniform in 1..T', as the squared error of v (weight `1 + SNR` on x_0); returns the average."""

    def loss(network: Denoiser) -> Tensor:
        clean = images[torch.randint(len(images), (batch,), generator=random)]
        time_step = torch.randint(1, denoiser.truncation + 1, (batch,), generator=random)
        noise = torch.randn(clean.shape, generator=random)
        noisy = diffuse(clean, noise, TABLE[time_step])
        alpha, sigma = amplitudes(time_step)
        v = network.velocity(noisy, (time_step - 1).float())
        return (v - (alpha * noise - sigma * clean)).square().mean()

    return _fit(denoiser, loss, steps, rate, ema, tell)


def distil(
    images: Tensor,
    teacher: Denoiser,
    *,
    first_steps: int,
    steps: int,
    batch: int,
    rate: float,
    ema: float,
    random: torch.Generator,
    tell: Tell,
) -> Denoiser:
    """Progressive distillation: students with half the steps of their teachers, the first teacher's being first_steps.

    steps: optimiser steps of each student. Returns: the student that takes one step from T' to the clean image.
    """
    count, done = first_steps, 0
    while count > 1:
        count //= 2
        grid = even_grid(teacher.truncation, 2 * count)
        student = Denoiser(**_config(teacher))
        student.load_state_dict(teacher.state_dict())

        def loss(network: Denoiser, grid: Tensor = grid, teacher: Denoiser = teacher, count: int = count) -> Tensor:
            clean = images[torch.randint(len(images), (batch,), generator=random)]
            step = torch.randint(count, (batch,), generator=random)
            start, middle, end = grid[2 * step + 2], grid[2 * step + 1], grid[2 * step]
            noisy = diffuse(clean, torch.randn(clean.shape, generator=random), TABLE[start])
            target = distillation_target(teacher, noisy, start, middle, end)
            alpha, sigma = amplitudes(start)
            prediction = alpha * noisy - sigma * network.velocity(noisy, (start - 1).float())
            return ((prediction - target).square().mean(dim=(1, 2, 3)) / sigma.flatten().square()).mean()

        def tell_more(step: int, text: str, before: int = done, count: int = count) -> None:
            tell(before + step, f"{count}-step student: {text}")

        teacher, done = _fit(student, loss, steps, rate, ema, tell_more), done + steps
    return teacher


@torch.no_grad()
def distillation_target(teacher: Denoiser, noisy: Tensor, start: Tensor, middle: Tensor, end: Tensor) -> Tensor:
    """The clean prediction with which one DDIM step start -> end arrives where the teacher's two arrive.

    Salimans and Ho 2022, Algorithm 2: `x~ = (z'' - (sigma''/sigma) z) / (alpha'' - (sigma''/sigma) alpha)`,
    z'' the teacher's state at `end`. Times t are (B,) int64, decreasing.
    """
    there = ddim_step(teacher, ddim_step(teacher, noisy, start, middle), middle, end)
    (alpha, sigma), (alpha_end, sigma_end) = amplitudes(start), amplitudes(end)
    ratio = sigma_end / sigma
    return (there - ratio * noisy) / (alpha_end - ratio * alpha)


def ddim_step(network: Denoiser, noisy: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """One DDIM step (SPEC 1, eq. 6) between the times `start` and `end`, (B,) int64."""
    (alpha, sigma), (alpha_end, sigma_end) = amplitudes(start), amplitudes(end)
    clean = alpha * noisy - sigma * network.velocity(noisy, (start - 1).float())
    return alpha_end * clean + sigma_end / sigma * (noisy - alpha * clean)


def amplitudes(time_step: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha_t, sigma_t), each (B, 1, 1, 1) float32."""
    abar = TABLE[time_step].view(-1, 1, 1, 1)
    return abar.sqrt().float(), (1.0 - abar).sqrt().float()


def even_grid(truncation: int, steps: int) -> Tensor:
    """Times 0 = t_0 < ... < t_steps = T' in even steps, int64."""
    return torch.arange(steps + 1) * truncation // steps


def _config(denoiser: Denoiser) -> dict[str, int]:
    return {"width": denoiser.patches.out_channels, "blocks": len(denoiser.blocks), "truncation": denoiser.truncation}


def _fit(
    network: Denoiser, loss_of: Callable[[Denoiser], Tensor], steps: int, rate: float, ema: float, tell: Tell
) -> Denoiser:
    """Minimise a loss of one batch by AdamW and return the moving average of the weights."""
    average = moving_average(network, ema)
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate_factor(step, steps))
    losses: list[float] = []
    for step in range(steps):
        loss = loss_of(network)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        average.update_parameters(network)
        losses.append(float(loss.detach()))
        tell(step + 1, f"loss {np.mean(losses[-50:]):.4f}")
    network.load_state_dict(average.module.state_dict())
    return network.eval().requires_grad_(False)
