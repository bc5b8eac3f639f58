"""Training of `digits-hat`: a truncated diffusion distilled to one step, then the two stages of Hat Diffusion EBM."""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...checkpoint import save_checkpoint, save_module
from ...data import load_digits_split
from ...networks.hat import Denoiser, Energy, Proposal
from ..calibration import calibrate_checkpoint
from ..ddpm import Report
from ..provenance import provenance
from .card import NAME, model_card
from .diffusion import Tell, distil, train_truncated
from .energy import Chain, StageRecipe, Stages
from .proposal import pretrain_proposal

__all__ = ["NAME", "Recipe", "train_digits_hat"]


PROPOSAL_CONFIG = {"width": 40}
ENERGY_CONFIG = {"width": 32, "dense": 128}
FIRST = StageRecipe(
    iterations=700, chain=Chain(steps=30, epsilon=2e-3, temperature=1e-5, max_displacement=0.5), beta_2=0.1
)
SECOND = StageRecipe(
    iterations=200,
    chain=Chain(steps=15, epsilon=2e-3, temperature=1e-5, latent_epsilon=3e-3, max_displacement=0.5),
    energy_rate=1e-4,
    ema=0.98,
)


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters; the defaults are the ones of the shipped checkpoint.

    denoiser_ema: decay of the truncated diffusion's average. distilled_from: DDIM steps of the first teacher.
    proposal_deviation: std of the decoder that G_1 starts as.
    """

    seed: int = 0
    batch: int = 64
    denoiser: dict[str, int] = field(default_factory=lambda: {"width": 64, "blocks": 4, "truncation": 512})
    latent: int = 32
    diffusion_steps: int = 2000
    diffusion_rate: float = 2e-3
    diffusion_ema: float = 0.998
    distilled_from: int = 8
    distillation_steps: int = 400
    distillation_rate: float = 5e-4
    distillation_ema: float = 0.99
    proposal_steps: int = 1000
    proposal_rate: float = 1e-3
    proposal_deviation: float = 0.45
    first: StageRecipe = FIRST
    second: StageRecipe = SECOND


def train_digits_hat(output: Path, report: Report, recipe: Recipe | None = None) -> Path:
    """Train `digits-hat` from nothing and write its checkpoint below `output`; returns its directory."""
    recipe = recipe or Recipe()
    started = time.perf_counter()
    torch.manual_seed(recipe.seed)
    random = torch.Generator().manual_seed(recipe.seed)
    images = torch.tensor(load_digits_split().train.images)
    students = recipe.distilled_from.bit_length() - 1
    parts = (
        recipe.diffusion_steps,
        students * recipe.distillation_steps,
        recipe.proposal_steps,
        recipe.first.iterations,
        recipe.second.iterations,
    )
    logs: dict[str, str] = {}

    def part(place: int, name: str) -> Tell:
        def tell(done: int, losses: str) -> None:
            logs[name] = losses
            report(sum(parts[:place]) + done, sum(parts), losses)

        return tell

    teacher = train_truncated(
        images,
        Denoiser(**recipe.denoiser),
        steps=recipe.diffusion_steps,
        batch=recipe.batch,
        rate=recipe.diffusion_rate,
        ema=recipe.diffusion_ema,
        random=random,
        tell=part(0, "diffusion"),
    )
    denoiser = distil(
        images,
        teacher,
        first_steps=recipe.distilled_from,
        steps=recipe.distillation_steps,
        batch=recipe.batch,
        rate=recipe.distillation_rate,
        ema=recipe.distillation_ema,
        random=random,
        tell=part(1, "distillation"),
    )
    proposal_config = {"latent": recipe.latent, **PROPOSAL_CONFIG}
    proposal = Proposal(**proposal_config)
    pretrain_proposal(
        images,
        proposal,
        steps=recipe.proposal_steps,
        batch=recipe.batch,
        rate=recipe.proposal_rate,
        deviation=recipe.proposal_deviation,
        random=random,
        tell=part(2, "proposal"),
    )
    stages = Stages(images, denoiser, Energy(**ENERGY_CONFIG), proposal, random)
    stages.first(recipe.first, part(3, "first stage"))
    residual_energy = copy.deepcopy(stages.energy)
    stages.second(recipe.second, part(4, "second stage"))
    directory = output / NAME
    modules = {
        "denoiser": save_module(directory, "denoiser", "hat-denoiser", dict(recipe.denoiser), denoiser),
        "proposal": save_module(directory, "proposal", "hat-proposal", proposal_config, stages.proposal),
        "residual_energy": save_module(directory, "residual_energy", "hat-energy", ENERGY_CONFIG, residual_energy),
        "energy": save_module(directory, "energy", "hat-energy", ENERGY_CONFIG, stages.energy),
    }
    training: dict[str, Any] = {
        "algorithm": "Hat Diffusion EBM: truncated diffusion, progressive distillation, Algorithms 1 and 2",
        "recipe": asdict(recipe),
        "optimiser": "AdamW for the denoiser, Adam for the rest",
        "final_losses": logs,
        "seconds": round(time.perf_counter() - started, 1),
        **provenance(),
    }
    card = model_card(modules, training, latent=recipe.latent, first=recipe.first.chain, second=recipe.second.chain)
    save_checkpoint(directory, card)
    calibrate_checkpoint(directory)
    return directory
