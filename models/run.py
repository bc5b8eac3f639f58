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

from .card import ModelCard
from .program import SAMPLE, EnsembleUpdate, LangevinUpdate, Line, MetropolisUpdate, Program, Update, start_draw

Network = Callable[..., tuple[Tensor, ...]]


@dataclass
class Result:
    """What a program gives.

    state: final samples `(rows, *shape)`; registers: all final registers by name. energy: `(rows,)`, the last one
    that a line with a gradient saw, or else the mean of the scores. scores: `(rows,)` for each scoring line.
    trace, previews: the samples after each line and what callers are shown of it, where asked for: the prediction of
    the clean image, or the place of the chain; None for a line that leaves the sample alone.
    """

    state: Tensor
    registers: dict[str, Tensor] = field(default_factory=dict)
    energy: Tensor | None = None
    scores: list[Tensor] = field(default_factory=list)
    trace: list[Tensor] = field(default_factory=list)
    previews: list[Tensor | None] = field(default_factory=list)


def energy_gradient(module: torch.nn.Module, gradients: Sequence[str], **inputs: Tensor) -> tuple[Tensor, ...]:
    """Energy `(rows,)`, its gradients with respect to the named inputs, and what else the module returns.

    An input that the energy does not depend on has a gradient of zeros.
    """
    with torch.enable_grad():
        leaves = {name: inputs[name].detach().requires_grad_(True) for name in gradients}
        found = module(**{**inputs, **leaves})
        energy, *others = found if isinstance(found, tuple) else (found,)
        taken = torch.autograd.grad(energy.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
    return (energy.detach(), *taken, *(other.detach() for other in others))


def networks_of(card: ModelCard, modules: Mapping[str, torch.nn.Module]) -> dict[str, Network]:
    """The callables of a card's networks by name, see `network_of`."""
    return {name: network_of(card, name, modules) for name in card.networks}


def network_of(card: ModelCard, name: str, modules: Mapping[str, torch.nn.Module]) -> Network:
    """A network of a card as a callable: keyword tensors in, tuple of tensors out, in the order of `outputs`."""
    spec = card.networks[name]
    module = modules[spec.module]

    def gradient(**inputs: Tensor) -> tuple[Tensor, ...]:
        return energy_gradient(module, spec.gradients, **inputs)

    def forward(**inputs: Tensor) -> tuple[Tensor, ...]:
        found = module(**inputs)
        return found if isinstance(found, tuple) else (found,)

    return gradient if spec.function == "energy_gradient" else forward


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
    if program.needs_image and images is None:
        raise ValueError("images: the program starts from images, and none were given")
    return _Loop(program, card, networks, seed, count, labels, images, dtype).run(keep_trace)


class _Loop:
    """The registers of `count` rows, and a method for each kind of update."""

    def __init__(
        self,
        program: Program,
        card: ModelCard,
        networks: Mapping[str, Network],
        seed: int,
        count: int,
        labels: Sequence[int] | None,
        images: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        self.program, self.card, self.networks = program, card, networks
        self.seed, self.count, self.dtype = seed, count, dtype
        self.null = (card.labels.null if card.labels is not None else None) or 0
        self.label = torch.tensor(list(labels) if labels is not None else [self.null] * count, dtype=torch.int64)
        self.x: dict[str, Tensor] = {}
        for index, (name, shape) in enumerate(card.register_shapes().items()):
            std = program.start_std(name)
            start = torch.zeros(count, *shape, dtype=dtype)
            if std:
                start = std * self.noise(start_draw(index), shape, shared=program.shared_start)
            if name == SAMPLE and images is not None and program.needs_image:
                start = start + program.image_scale * images.to(dtype)
            self.x[name] = start
        self.anchor = dict(self.x)
        self.accumulator = self.x[SAMPLE]
        self.predictions: list[Tensor] = []
        self.preview: Tensor | None = None
        self.kept: tuple[Tensor, Tensor, Tensor] | None = None
        self.result = Result(self.x[SAMPLE])

    def noise(self, draw: int, shape: Sequence[int], *, shared: bool = False) -> Tensor:
        size = int(torch.Size(shape).numel())
        samples = [0] * self.count if shared else list(range(self.count))
        values = normal([self.seed] * self.count, samples, [draw] * self.count, size)
        return torch.from_numpy(values.copy()).reshape(self.count, *shape).to(self.dtype)

    def run(self, keep_trace: bool) -> Result:
        result = self.result
        for line in self.program.lines:
            if line.sets_anchor:
                self.anchor.update({update.register: self.x[update.register] for update in line.updates})
            outputs = self.call(line, self.label)
            unconditional = self.call(line, torch.full_like(self.label, self.null)) if line.guided else outputs
            if line.takes_gradient:
                result.energy = outputs[0]
            if not line.updates:
                result.scores.append(outputs[0])
            self.preview = None
            # All updates of a line see the registers as they were when the network ran.
            self.x.update({u.register: self.updated(u, outputs, unconditional) for u in line.updates})
            if keep_trace:
                result.trace.append(self.x[SAMPLE])
                result.previews.append(self.preview)
        if result.scores:
            result.energy = torch.stack(result.scores).mean(0)
        result.state, result.registers = self.x[SAMPLE], self.x
        return result

    def call(self, line: Line, label: Tensor) -> tuple[Tensor, ...]:
        inputs: dict[str, Tensor] = {}
        for spec in self.card.networks[line.network].inputs:
            if spec.name in self.x:
                inputs[spec.name] = self.x[spec.name]
            elif spec.name == "label":
                inputs["label"] = label
            elif spec.name == "latent":
                if line.latent is None:
                    raise ValueError(f"a line gives no latent, which network {line.network} takes")
                inputs["latent"] = self.noise(line.latent, spec.shape)
            else:
                inputs[spec.name] = torch.full((self.count,), line.scalars[spec.name], dtype=self.dtype)
        return self.networks[line.network](**inputs)

    def updated(self, update: Update, outputs: tuple[Tensor, ...], unconditional: tuple[Tensor, ...]) -> Tensor:
        x, out = self.x[update.register], outputs[update.output]
        noise = torch.zeros_like(x)
        if update.noise is not None:
            noise = self.noise(update.noise, x.shape[1:], shared=update.shared)
        if isinstance(update.rule, EnsembleUpdate):
            return self.ensemble(update, update.rule, x, out, unconditional[update.output], noise)
        if isinstance(update.rule, LangevinUpdate):
            new = self.langevin(update.rule, x, self.anchor[update.register], out, noise)
            self.preview = new if update.register == SAMPLE else self.preview
            return new
        return self.metropolis(update, update.rule, x, outputs[0], out, noise)

    def ensemble(
        self, update: Update, rule: EnsembleUpdate, x: Tensor, out: Tensor, unconditional: Tensor, noise: Tensor
    ) -> Tensor:
        out = (1.0 + rule.guidance) * out - rule.guidance * unconditional
        p = rule.p_output * out
        if rule.p_state:
            p = p + rule.p_state * x
        p = p.clamp(rule.low, rule.high)
        new = rule.state * x + rule.prediction * p + rule.anchor * self.anchor[update.register] + rule.noise * noise
        if self.program.uses_accumulator:
            self.accumulator = rule.y_accumulator * self.accumulator + rule.y_prediction * p
            new = new + rule.accumulator * self.accumulator
        if self.program.kept_predictions:
            for weight, before in zip(update.history, self.predictions, strict=False):
                new = new + weight * before
            self.predictions.append(p)
        if update.register == SAMPLE:
            self.preview = p
        return new

    def langevin(self, rule: LangevinUpdate, x: Tensor, anchor: Tensor, gradient: Tensor, noise: Tensor) -> Tensor:
        step = rule.gradient * gradient
        if isfinite(rule.max_displacement):
            norm = step.flatten(1).norm(dim=1).clamp_min(torch.finfo(self.dtype).tiny)
            step = step * _per_row((rule.max_displacement / norm).clamp_max(1.0), x)
        return (rule.state * x + rule.anchor * anchor + step + rule.noise * noise).clamp(rule.low, rule.high)

    def metropolis(
        self, update: Update, rule: MetropolisUpdate, proposal: Tensor, energy: Tensor, gradient: Tensor, noise: Tensor
    ) -> Tensor:
        a, b = rule.judged_step, rule.judged_beta
        if self.kept is None or update.decision is None:
            self.kept = (proposal, energy, gradient)
        else:
            place, before, slope = self.kept
            back = (place - proposal + a * b * gradient).flatten(1).square().sum(1)
            forth = (proposal - place + a * b * slope).flatten(1).square().sum(1)
            log_ratio = -b * (energy - before) + (forth - back) / (4.0 * a)
            inside = ((proposal >= rule.low) & (proposal <= rule.high)).flatten(1).all(1)
            uniform = torch.special.ndtr(self.noise(update.decision, (1,)).flatten().double())
            taken = inside & (uniform.log() < log_ratio)
            keep = _per_row(taken, proposal)
            self.kept = (
                torch.where(keep, proposal, place),
                torch.where(taken, energy, before),
                torch.where(keep, gradient, slope),
            )
        place, self.result.energy, slope = self.kept
        self.preview = place
        return place - rule.step * rule.beta * slope + (2.0 * rule.step) ** 0.5 * noise


def _per_row(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.dim() - 1))
