"""Runs a program offline with torch modules: a plain loop, and the oracle for what the server returns.

Nothing here is shared with the server's runner but the noise: the updates are written out from
`models.program`, one tensor for each symbol, in the precision asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor

from kernels.philox import normal

from .bundle import ModelCard
from .program import EnsembleUpdate, LangevinUpdate, Line, Program

Network = Callable[..., tuple[Tensor, ...]]


@dataclass
class Result:
    """What a program gives: final states `(rows, *shape)`, energies `(rows,)` of the last scoring or
    Langevin line, and the states after each line where asked for."""

    state: Tensor
    energy: Tensor | None = None
    trace: list[Tensor] = field(default_factory=list)


def energy_gradient(module: torch.nn.Module, sample: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Energy `(rows,)` and its gradient with respect to `sample`, `(rows, *shape)`."""
    with torch.enable_grad():
        leaf = sample.detach().requires_grad_(True)
        energy = module(sample=leaf, **inputs)
        (gradient,) = torch.autograd.grad(energy.sum(), leaf)
    return energy.detach(), gradient


def networks_of(card: ModelCard, modules: Mapping[str, torch.nn.Module]) -> dict[str, Network]:
    """The callables of a card's networks: keyword tensors in, tuple of tensors out, in the order of `outputs`."""

    def bind(name: str) -> Network:
        spec = card.networks[name]
        module = modules[spec.module]
        if spec.function == "energy_gradient":
            return lambda **inputs: energy_gradient(module, **inputs)
        return lambda **inputs: (module(**inputs),)

    return {name: bind(name) for name in card.networks}


@torch.no_grad()
def run(
    program: Program,
    card: ModelCard,
    networks: Mapping[str, Network],
    *,
    seed: int,
    count: int,
    labels: Sequence[int] | None = None,
    images: Tensor | None = None,
    keep_trace: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Result:
    """Run a program for samples 0..count-1 of one request.

    seed: keys the noise. labels: one per sample; without labels the null label is used.
    images: `(count, *shape)`, where the program starts from the caller's images.
    """
    shape = card.image.shape
    null = card.labels.null if card.labels is not None else None
    rows = list(range(count))
    label = torch.tensor(list(labels) if labels is not None else [null or 0] * count, dtype=torch.int64)

    def noise(draw: int, per_row: Sequence[int] = shape) -> Tensor:
        size = int(torch.Size(per_row).numel())
        values = normal([seed] * count, rows, [draw] * count, size)
        return torch.from_numpy(values.copy()).reshape(count, *per_row).to(dtype)

    def call(line: Line, x: Tensor, index: int, label: Tensor) -> tuple[Tensor, ...]:
        inputs: dict[str, Tensor] = {}
        for spec in card.networks[line.network].inputs:
            if spec.name == "sample":
                inputs["sample"] = x
            elif spec.name == "label":
                inputs["label"] = label
            elif spec.name == "latent":
                if line.latent is None:
                    raise ValueError(f"line {index} gives no latent, which network {line.network} takes")
                inputs["latent"] = noise(line.latent, spec.shape)
            else:
                inputs[spec.name] = torch.full((count,), line.scalars[spec.name], dtype=dtype)
        return networks[line.network](**inputs)

    x = (
        program.noise_scale * noise(Program.FIRST_DRAW)
        if program.noise_scale
        else torch.zeros(count, *shape, dtype=dtype)
    )
    if program.needs_image:
        if images is None:
            raise ValueError("images: the program starts from images, and none were given")
        x = x + program.image_scale * images.to(dtype)
    result = Result(x)
    start, y = x, x
    predictions: list[Tensor] = []
    for index, line in enumerate(program.lines):
        outputs = call(line, x, index, label)
        update = line.update
        if isinstance(update, EnsembleUpdate):
            out = outputs[0]
            if line.guided:
                (unconditional,) = call(line, x, index, torch.full_like(label, null or 0))
                out = (1.0 + update.guidance) * out - update.guidance * unconditional
            p = (update.p_state * x + update.p_output * out).clamp(update.low, update.high)
            y = update.y_accumulator * y + update.y_prediction * p
            x = update.state * x + update.prediction * p + update.anchor * start + update.accumulator * y
            if line.noise is not None:
                x = x + update.noise * noise(line.noise)
            for weight, before in zip(line.history, predictions, strict=False):
                x = x + weight * before
            predictions.append(p)
        elif isinstance(update, LangevinUpdate):
            result.energy, gradient = outputs
            step = update.gradient * gradient
            if isfinite(update.max_displacement):
                norm = step.flatten(1).norm(dim=1).clamp_min(torch.finfo(dtype).tiny)
                step = step * (update.max_displacement / norm).clamp_max(1.0).reshape(-1, *[1] * len(shape))
            x = update.state * x + update.anchor * start + step
            if line.noise is not None:
                x = x + update.noise * noise(line.noise)
            x = x.clamp(update.low, update.high)
        else:
            result.energy = outputs[0]
        if keep_trace:
            result.trace.append(x)
    result.state = x
    return result
