"""The engine underneath every peer: the same graphs, programs, noise and updates as the server's, batched by request.

A batch is a list of whole requests. Its rows go through their programs in lock step: a row whose program is done leaves
the network's batch, and all answers leave together when the last row is done. That is what the batchers of other
servers make of a model: they hand over a batch of requests and take back a batch of answers.

Sessions, updates and noise are those that the server runs (`export.runtime`, `kernels`), so that a comparison is of
what is around them. It needs numpy, ONNX Runtime and msgspec alone, as it runs in the peers' own environments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.runtime.onnxruntime import OnnxRuntime
from kernels.cpu import ensemble_step, langevin_step
from kernels.philox import normal
from models.bundle import Bundle, load_bundle
from models.card import ModelCard
from models.program import SAMPLE, EnsembleUpdate, LangevinUpdate, Line, Program, Update, start_draw
from models.samplers import SampleOptions, compile_sample, compile_score, find_scale

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]


class RequestError(ValueError):
    """A request that this engine does not serve; the message says why."""


@dataclass(frozen=True, slots=True)
class Request:
    """One call. Row i is sample 0 of `seeds[i]`, as in the server's Open Inference Protocol.

    labels: one a row, or None. images: `(rows, *shape)` float32, for a score, whose answer is energies and not images.
    """

    program: Program
    seeds: Sequence[int]
    labels: Sequence[int] | None = None
    images: Floats | None = None


class Engine:
    """One bundle's networks on the CPU; called from one thread at a time."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        """threads: how many one network may use, the calling one included."""
        self.card: ModelCard = bundle.card
        self._null = (self.card.labels.null if self.card.labels is not None else None) or 0
        runtime = OnnxRuntime(threads)
        self._sessions = {name: runtime.load(bundle, name) for name in self.card.networks}
        self._programs: dict[tuple[str | None, int | None], Program] = {}

    def sample_request(
        self, sampler: str | None, steps: int | None, seeds: Sequence[int], labels: Sequence[int] | None = None
    ) -> Request:
        """A request for samples; without sampler or steps the model's defaults.

        Raises:
            ValueError: the model does not have that, or the labels are not one a row.
        """
        if labels is not None and len(labels) != len(seeds):
            raise RequestError(f"labels: must be one for each of {len(seeds)} seeds, got {len(labels)}")
        key = sampler, steps
        if key not in self._programs:
            self._programs[key] = compile_sample(self.card, SampleOptions(sampler=sampler, steps=steps))
        return Request(self._programs[key], seeds, labels)

    def score_request(self, images: Floats) -> Request:
        """A request for the energies of images `(rows, *shape)` at the model's first scale.

        Raises:
            ValueError: the model has no energy, or the images are not of its shape.
        """
        if images.ndim != 4 or images.shape[1:] != self.card.image.shape:
            raise RequestError(f"images: must be (rows, {self.card.image.shape}), got {images.shape}")
        program = compile_score(self.card, find_scale(self.card, None))
        return Request(program, [0] * len(images), images=images)

    def warm_up(self, rows: Sequence[int] = (1, 2)) -> None:
        """Run every network once at a few batch sizes, as the server does before it is ready."""
        for name, spec in self.card.networks.items():
            for count in rows:
                inputs = {t.name: np.zeros((count, *t.shape), t.dtype) for t in spec.inputs}
                self._sessions[name].run(inputs)

    def run(self, requests: Sequence[Request]) -> list[Array]:
        """Run a batch of whole requests.

        Returns: for each request its images `(rows, *shape)` float32, or for a score its energies `(rows,)` float64.
        """
        batch = _Batch(self.card, requests)
        step = 0
        while members := batch.waiting(step):
            for rows in members.values():
                self._step(batch, rows, step)
            step += 1
        return batch.answers()

    def _step(self, batch: _Batch, rows: Rows, step: int) -> None:
        """Run one network on rows that wait for it, and update them."""
        lines = [batch.programs[row].lines[step] for row in rows]
        inputs = batch.inputs(rows, lines, self._null)
        found = self._sessions[lines[0].network].run(inputs)
        outputs, unconditional = [o[: len(rows)] for o in found], [o[len(rows) :] for o in found]
        if lines[0].updates:
            batch.update(rows, lines, outputs, unconditional)
        else:
            batch.energies[rows] += outputs[0]
            batch.scored[rows] += 1


class _Batch:
    """The rows of a batch and their registers, `(rows, elements)` float32 each."""

    def __init__(self, card: ModelCard, requests: Sequence[Request]) -> None:
        self.card, self.requests = card, requests
        self.programs = [request.program for request in requests for _ in request.seeds]
        self.seeds = [seed for request in requests for seed in request.seeds]
        self.labels: list[int | None] = []
        for request in requests:
            self.labels += request.labels if request.labels is not None else [None] * len(request.seeds)
        count = len(self.seeds)
        if any(program.kept_predictions for program in self.programs):
            raise RequestError("sampler: custom ensembles, which keep every prediction, are not compared")
        self.lengths = np.array([len(program.lines) for program in self.programs])
        self.shapes = card.register_shapes()
        self.x = {name: np.zeros((count, int(np.prod(shape))), np.float32) for name, shape in self.shapes.items()}
        self._start()
        self.anchor = {name: state.copy() for name, state in self.x.items()}
        accumulates = any(program.uses_accumulator for program in self.programs)
        self.accumulator = self.x[SAMPLE].copy() if accumulates else None
        self.energies, self.scored = np.zeros(count), np.zeros(count, np.int64)

    def _start(self) -> None:
        for index, (name, state) in enumerate(self.x.items()):
            stds = [program.start_std(name) for program in self.programs]
            draws = [start_draw(index) if std else None for std in stds]
            if any(stds):
                state += np.array(stds, np.float32)[:, None] * self._noise(range(len(stds)), draws, state.shape[1])
        first = 0
        for request in self.requests:
            last = first + len(request.seeds)
            if request.images is not None:
                flat = request.images.reshape(last - first, -1)
                self.x[SAMPLE][first:last] += np.float32(request.program.image_scale) * flat
            first = last

    def _noise(self, rows: Sequence[int] | Array, draws: Sequence[int | None], elements: int) -> Floats:
        """Noise of some rows, `(rows, elements)`, zero where a row takes none; every row is its seed's sample 0."""
        taking = [place for place, draw in enumerate(draws) if draw is not None]
        seeds = [self.seeds[rows[place]] for place in taking]
        made = normal(seeds, [0] * len(taking), [draw for draw in draws if draw is not None], elements)
        if len(taking) == len(draws):
            return made
        noise = np.zeros((len(draws), elements), np.float32)
        noise[taking] = made
        return noise

    def waiting(self, step: int) -> dict[tuple[str, str], Rows]:
        """The rows that have a line `step`, by what may run together: the network and the kind of update."""
        found: dict[tuple[str, str], list[int]] = {}
        for row in np.flatnonzero(self.lengths > step).tolist():
            line = self.programs[row].lines[step]
            found.setdefault((line.network, line.kind), []).append(row)
        return {key: np.array(rows) for key, rows in found.items()}

    def inputs(self, rows: Rows, lines: Sequence[Line], null: int) -> dict[str, Array]:
        """A network's inputs for some rows and, behind them, once more for the guided ones with the null label."""
        guided = [place for place, line in enumerate(lines) if line.guided]
        order = [*range(len(rows)), *guided]
        given: dict[str, Array] = {}
        for spec in self.card.networks[lines[0].network].inputs:
            if spec.name in self.x:
                given[spec.name] = self.x[spec.name][rows[order]].reshape(-1, *self.shapes[spec.name])
            elif spec.name == "label":
                labels = [null if self.labels[row] is None else self.labels[row] for row in rows]
                given["label"] = np.array([*labels, *(null for _ in guided)], np.int64)
            elif spec.name == "latent":
                latent = self._noise(rows, [line.latent for line in lines], spec.elements)
                given["latent"] = latent[order].reshape(-1, *spec.shape)
            else:
                given[spec.name] = np.array([lines[place].scalars[spec.name] for place in order], np.float32)
        return given

    def update(
        self,
        rows: Rows,
        lines: Sequence[Line],
        outputs: Sequence[Floats],
        unconditional: Sequence[Floats],
    ) -> None:
        """Apply the lines' updates; all of them see the registers as they were when the network ran."""
        guided = [place for place, line in enumerate(lines) if line.guided]
        targets: dict[tuple[str, type, int], list[tuple[int, Update]]] = {}
        for place, line in enumerate(lines):
            for update in line.updates:
                targets.setdefault((update.register, type(update.rule), update.output), []).append((place, update))
                if line.sets_anchor:
                    self.anchor[update.register][rows[place]] = self.x[update.register][rows[place]]
        for (register, kind, output), members in targets.items():
            places, updates = [place for place, _ in members], [update for _, update in members]
            slots, outs = rows[places], _flat(outputs[output])
            noise = self._update_noise(slots, updates, outs.shape[1])
            coefficients = np.stack([update.coefficients for update in updates])
            state, anchor = self.x[register], self.anchor[register]
            if kind is EnsembleUpdate:
                null = None
                if guided:
                    null = outs.copy()
                    null[guided] = _flat(unconditional[output])
                    null = null[places]
                ensemble_step(
                    *(state, slots, outs[places], coefficients),
                    anchor=anchor,
                    null_output=null,
                    accumulator=self.accumulator if register == SAMPLE else None,
                    noise=noise,
                )
            elif kind is LangevinUpdate:
                langevin_step(state, slots, outs[places], coefficients, anchor=anchor, noise=noise)
            else:
                raise RequestError("metropolis: chains that accept and reject are not compared")

    def _update_noise(self, rows: Rows, updates: Sequence[Update], elements: int) -> Floats | None:
        draws = [update.noise for update in updates]
        return None if all(draw is None for draw in draws) else self._noise(rows, draws, elements)

    def answers(self) -> list[Array]:
        """Images or energies, request by request."""
        energy = self.card.energy
        factor = energy.sign * energy.scale if energy is not None else 1.0
        found: list[Array] = []
        first = 0
        for request in self.requests:
            last = first + len(request.seeds)
            if request.images is not None:
                found.append(factor * self.energies[first:last] / self.scored[first:last])
            else:
                found.append(self.x[SAMPLE][first:last].reshape(-1, *self.card.image.shape))
            first = last
        return found


def load_engines(repository: Path, threads: int) -> Mapping[str, Engine]:
    """An engine for the newest version of every model of a repository, warmed up.

    Raises:
        BundleError: a bundle cannot be used.
    """
    engines = {}
    for directory in sorted(path for path in repository.iterdir() if path.is_dir()):
        newest = max((path for path in directory.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
        engine = Engine(load_bundle(newest), threads)
        engine.warm_up()
        engines[engine.card.name] = engine
    return engines


def _flat(output: Floats) -> Floats:
    return output.reshape(len(output), -1)
