"""Training of `digits-ddpm`: DDPM's simple loss, with labels dropped for guidance.

Ho et al. 2020, Algorithm 1: `|| eps - eps_theta(sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, t) ||^2`, t uniform in
1..1000.
Classifier-free guidance, Algorithm 1: the label is replaced by the null label with a fixed probability.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..card import ImageSpec, LabelSpec, ModelCard, NetworkSpec, SamplingSpec, ScheduleSpec, TensorSpec
from ..checkpoint import save_checkpoint, save_module
from ..data import CLASSES, NULL_LABEL, LabelledImages, load_digits_split
from ..networks import build
from ..schedules import alpha_bar
from .ema import moving_average
from .provenance import provenance

NAME = "digits-ddpm"
ARCHITECTURE = "unet2d"
CONFIG = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [32, 64],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "num_class_embeds": CLASSES + 1,
}
SCHEDULE = ScheduleSpec()
Report = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, losses as text)."""


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters; the defaults are the ones of the shipped checkpoint."""

    seed: int = 0
    steps: int = 3000
    batch: int = 64
    learning_rate: float = 1e-3
    ema_decay: float = 0.998
    label_dropout: float = 0.5


def train_denoiser(data: LabelledImages, recipe: Recipe, report: Report) -> tuple[nn.Module, float]:
    """Train an eps-prediction network on labelled images.

    Returns: the averaged network, and the mean loss of the last tenth of the run.
    """
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    network = build(ARCHITECTURE, CONFIG).train()
    average = moving_average(network, recipe.ema_decay)
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=1e-4)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate_factor(step, recipe.steps))
    images, labels = torch.tensor(data.images), torch.tensor(data.labels)
    abar = torch.tensor(alpha_bar(SCHEDULE))
    losses = []
    for step in range(recipe.steps):
        chosen = torch.randint(len(labels), (recipe.batch,), generator=generator)
        time_step = torch.randint(1, SCHEDULE.steps + 1, (recipe.batch,), generator=generator)
        noise = torch.randn(recipe.batch, *images.shape[1:], generator=generator)
        noisy = diffuse(images[chosen], noise, abar[time_step])
        label = drop_labels(labels[chosen], recipe.label_dropout, generator)
        prediction = network(sample=noisy, time=(time_step - 1).float(), label=label)
        loss = (prediction - noise).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        rate.step()
        average.update_parameters(network)
        losses.append(float(loss.detach()))
        report(step + 1, recipe.steps, f"loss {np.mean(losses[-50:]):.4f}")
    trained: nn.Module = average.module
    return trained.eval(), float(np.mean(losses[-max(1, recipe.steps // 10) :]))


def diffuse(clean: Tensor, noise: Tensor, abar: Tensor) -> Tensor:
    """`sqrt(abar) x_0 + sqrt(1 - abar) noise`, abar: (B,) float64, one value a row."""
    abar = abar.view(-1, *[1] * (clean.dim() - 1))
    return abar.sqrt().float() * clean + (1.0 - abar).sqrt().float() * noise


def drop_labels(labels: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Replace each label by the null label with the given probability."""
    dropped = torch.rand(labels.shape, generator=generator) < probability
    return labels.masked_fill(dropped, NULL_LABEL)


def learning_rate_factor(step: int, steps: int, warmup: int = 50) -> float:
    """Linear warm-up, then half a cosine down to a tenth."""
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(step, steps) / steps))
    return min(1.0, (step + 1) / warmup) * (0.1 + 0.9 * cosine)


def train_digits_ddpm(output: Path, report: Report, recipe: Recipe | None = None) -> Path:
    """Train `digits-ddpm` and write its checkpoint below `output`; returns its directory."""
    recipe = recipe or Recipe()
    started = time.perf_counter()
    network, loss = train_denoiser(load_digits_split().train, recipe, report)
    directory = output / NAME
    module = save_module(directory, "denoiser", ARCHITECTURE, CONFIG, network)
    image = TensorSpec(name="sample", shape=(1, 8, 8))
    card = ModelCard(
        name=NAME,
        family="ddpm",
        description="Class-conditional eps-denoiser of 8x8 handwritten digits, with a null label for guidance.",
        image=ImageSpec(channels=1, height=8, width=8),
        labels=LabelSpec(count=CLASSES, null=NULL_LABEL, names=tuple(str(digit) for digit in range(CLASSES))),
        modules={"denoiser": module},
        networks={
            "denoiser": NetworkSpec(
                module="denoiser",
                inputs=(image, TensorSpec(name="time"), TensorSpec(name="label", dtype="int64")),
                outputs=(TensorSpec(name="eps", shape=(1, 8, 8)),),
            )
        },
        sampling=SamplingSpec(
            network="denoiser",
            schedule=SCHEDULE,
            samplers=("iddim", "ddim", "radical", "custom", "ancestral"),
            default_steps=10,
        ),
        training={
            "algorithm": "DDPM simple loss (Ho et al. 2020), label dropout for classifier-free guidance",
            "recipe": asdict(recipe),
            "optimiser": "AdamW, warm-up and cosine decay to a tenth, gradient norm clipped at 1",
            "final_loss": round(loss, 5),
            "seconds": round(time.perf_counter() - started, 1),
            **provenance(),
        },
    )
    save_checkpoint(directory, card)
    return directory
