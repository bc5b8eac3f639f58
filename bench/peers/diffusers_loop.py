"""diffusers in this process: the loop of its DDIMPipeline, over the torch module that a bundle was traced from.

The scheduler and its call for each step are diffusers' own, on its own evenly spaced times, and the start is torch's
noise: as many network evaluations as the others take, and not their samples. torch is kept to the engine's threads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.bundle import load_bundle

from .bare import Runner


def sampler_of(bundle_directory: Path, steps: int, threads: int) -> Runner:
    """Samples of a denoiser of the linear schedule, without labels.

    Raises:
        BundleError: the bundle cannot be used.
    """
    import torch  # with diffusers it takes seconds
    from diffusers import DDIMScheduler

    from models.checkpoint import load_modules

    torch.set_num_threads(threads)
    bundle = load_bundle(bundle_directory)
    card = bundle.card
    if card.sampling is None:
        raise ValueError(f"{card.name} draws no samples")
    network = card.networks[card.sampling.network]
    module = load_modules(bundle.directory, {network.module: card.modules[network.module]})[network.module]
    schedule = card.sampling.schedule
    scheduler: Any = DDIMScheduler(
        num_train_timesteps=schedule.steps,
        **{"beta_start": schedule.beta_start, "beta_end": schedule.beta_end, "beta_schedule": "linear"},
        clip_sample=card.sampling.clip,
    )
    scheduler.set_timesteps(steps)
    labelled = any(tensor.name == "label" for tensor in network.inputs)
    null = (card.labels.null if card.labels is not None else None) or 0

    @torch.no_grad()
    def run(rows: int) -> None:
        sample = torch.randn(rows, *card.image.shape)
        labels = {"label": torch.full((rows,), null)} if labelled else {}
        for time in scheduler.timesteps:
            output = module(sample=sample, time=time.expand(rows).float(), **labels)
            sample = scheduler.step(output, time, sample).prev_sample

    return run
