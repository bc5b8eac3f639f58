"""What people write without a server: plain torch loops over the modules, as they are or under torch.compile.

The result comes back to the host, as a caller's does. Noise is torch's own. In half precision samples are drawn with
the whole module in it, as diffusers' pipelines do, and energies and their gradients under autocast.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from models.bundle import Bundle
from models.card import TensorSpec
from models.checkpoint import load_modules
from models.program import SAMPLE, EnsembleUpdate, LangevinUpdate, Line, Program, Update
from models.run import Network, network_of

from .cases import Case, EndToEndError
from .contenders import Run, images_of
from .served import Taken


class Loops:
    """A bundle's modules on a device, and the loops over them."""

    def __init__(self, bundle: Bundle, device: torch.device, dtype: torch.dtype, *, compiled: bool) -> None:
        """compiled: by torch.compile, for each number of rows anew; on a GPU with CUDA graphs (`reduce-overhead`)."""
        self.card, self.device, self.dtype = bundle.card, device, dtype
        modules = load_modules(bundle.directory, bundle.card.modules)
        last = device.type == "cuda" or dtype != torch.float32
        for module in modules.values():
            module.to(device)
            if dtype != torch.float32:
                module.to(dtype)
            if last:
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        run: dict[str, Any] = dict(modules)
        if compiled:
            mode = "reduce-overhead" if device.type == "cuda" else None
            run = {name: torch.compile(module, mode=mode, dynamic=False) for name, module in modules.items()}
        self._compiled = compiled
        self._null = (bundle.card.labels.null if bundle.card.labels is not None else None) or 0
        self._networks: dict[str, Network] = {name: network_of(bundle.card, name, run) for name in bundle.card.networks}

    def loop(self, case: Case, program: Program) -> Run:
        """The loop of a case.

        Raises:
            EndToEndError: it needs a package that is not installed.
        """
        if case.task == "sample":
            return self._ddim(case)
        images = images_of(self.card, program, case.rows)
        given = None if images is None else torch.from_numpy(images).reshape(-1, *self.card.image.shape)

        def run() -> Taken:
            began = perf_counter()
            self._run(program, case.rows, given)
            return Taken(perf_counter() - began)

        return run

    def _ddim(self, case: Case) -> Run:
        """The loop of diffusers' `DDIMPipeline`, with its scheduler and its evenly spaced times."""
        try:
            from diffusers import DDIMScheduler
        except ImportError as error:
            raise EndToEndError(f"needs diffusers' scheduler: {error}") from error
        card, rows = self.card, case.rows
        if card.sampling is None:
            raise EndToEndError(f"{card.name} draws no samples")
        schedule, network = card.sampling.schedule, self._networks[card.sampling.network]
        scheduler: Any = DDIMScheduler(
            num_train_timesteps=schedule.steps,
            **{"beta_start": schedule.beta_start, "beta_end": schedule.beta_end, "beta_schedule": "linear"},
            clip_sample=card.sampling.clip,
        )
        scheduler.set_timesteps(case.steps)
        labelled = any(spec.name == "label" for spec in card.networks[card.sampling.network].inputs)

        @torch.no_grad()
        def run() -> Taken:
            began = perf_counter()
            sample = torch.randn(rows, *card.image.shape, device=self.device, dtype=self.dtype)
            labels = {"label": torch.full((rows,), self._null, device=self.device)} if labelled else {}
            for time in scheduler.timesteps:
                self._new_step()
                times = torch.full((rows,), float(time), device=self.device)
                (output, *_) = network(sample=sample, time=times, **labels)
                sample = scheduler.step(output, time, sample).prev_sample
            sample.float().cpu()
            return Taken(perf_counter() - began)

        return run

    def _new_step(self) -> None:
        """Outputs of the step before may be overwritten: torch.compile's CUDA graphs keep them until told so."""
        if self._compiled and self.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()

    @torch.no_grad()
    def _run(self, program: Program, rows: int, images: Tensor | None) -> Tensor:
        """A program's lines: Langevin chains and scores. Returns the energies or the samples, on the host."""
        x = {
            name: self._start(program, name, shape, rows, images) for name, shape in self.card.register_shapes().items()
        }
        anchor = dict(x)
        energy = None
        for line in program.lines:
            if line.sets_anchor:
                anchor.update({update.register: x[update.register] for update in line.updates})
            self._new_step()
            outputs = self._call(line, x, rows)
            energy = outputs[0] if not line.updates else energy
            x.update({u.register: _updated(u, x[u.register], anchor[u.register], outputs) for u in line.updates})
        return (x[SAMPLE] if energy is None else energy).float().cpu()

    def _start(self, program: Program, name: str, shape: tuple[int, ...], rows: int, images: Tensor | None) -> Tensor:
        std = program.start_std(name)
        start = std * torch.randn(rows, *shape, device=self.device) if std else None
        if name == SAMPLE and images is not None:
            given = program.image_scale * images.to(self.device)
            start = given if start is None else given + start
        return torch.zeros(rows, *shape, device=self.device) if start is None else start

    def _call(self, line: Line, x: dict[str, Tensor], rows: int) -> tuple[Tensor, ...]:
        specs = self.card.networks[line.network].inputs
        inputs = {spec.name: self._input(spec, line, x, rows) for spec in specs}
        with self._autocast():
            return self._networks[line.network](**inputs)

    def _input(self, spec: TensorSpec, line: Line, x: dict[str, Tensor], rows: int) -> Tensor:
        if spec.name in x:
            return x[spec.name].to(self.dtype)
        if spec.name == "label":
            return torch.full((rows,), self._null, device=self.device)
        if spec.name in line.scalars:
            return torch.full((rows,), line.scalars[spec.name], device=self.device)
        raise EndToEndError(f"no plain loop gives a network its input {spec.name}")

    def _autocast(self) -> AbstractContextManager[object]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def _updated(update: Update, x: Tensor, anchor: Tensor, outputs: tuple[Tensor, ...]) -> Tensor:
    """A Langevin step, or the assignment that puts an image in its place."""
    rule, out = update.rule, outputs[update.output].float()
    if isinstance(rule, EnsembleUpdate):
        return rule.prediction * out
    if not isinstance(rule, LangevinUpdate):
        raise EndToEndError(f"no plain loop does {type(rule).__name__}")
    step = rule.gradient * out
    if isfinite(rule.max_displacement):
        norm = step.flatten(1).norm(dim=1).clamp_min(1e-30)
        step = step * (rule.max_displacement / norm).clamp_max(1.0).view(-1, *[1] * (x.dim() - 1))
    new = rule.state * x + step
    if rule.anchor:
        new = new + rule.anchor * anchor
    if rule.noise:
        new = new + rule.noise * torch.randn_like(x)
    return new.clamp(rule.low, rule.high) if isfinite(rule.low) or isfinite(rule.high) else new
