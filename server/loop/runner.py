"""Runs one batch: gather the rows' states, run the network once, apply the fused update, scatter.

State lives in pools with one slot a row; the runner knows programs and kernels, and no paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

import numpy as np
import torch
from torch import Tensor

from export.runtime import Session
from kernels.philox import normal
from kernels.reference import ensemble_step, langevin_step
from models.bundle import Bundle, TensorSpec
from models.program import Program

from ..config import Limits
from ..errors import Internal
from ..types import Batch, Row

FLOAT_BYTES = 4


def slot_bytes(bundle: Bundle) -> int:
    """Bytes of one row's slot: its state, its anchor and its accumulator."""
    return 3 * FLOAT_BYTES * _elements(bundle)


def slots_of(bundle: Bundle, limits: Limits) -> int:
    """How many rows of a model may be in flight."""
    return max(1, min(limits.max_rows_in_flight, limits.state_bytes // slot_bytes(bundle)))


def row_bytes(bundle: Bundle, program: Program) -> int:
    """Bytes that one row may come to hold: slot, result, accumulator, and every prediction for `custom`."""
    registers = 3 + program.uses_accumulator + program.needs_image
    registers += len(program.lines) if program.keeps_history else 0
    return registers * FLOAT_BYTES * _elements(bundle)


def _elements(bundle: Bundle) -> int:
    return int(np.prod(bundle.card.image.shape))


class NetworkError(Exception):
    """The engine failed on a batch; no state has been changed, so its rows may be tried again."""


class ModelRunner:
    """One loaded model: its sessions and its state pools. Used by the engine's thread alone."""

    def __init__(
        self, bundle: Bundle, sessions: Mapping[str, Session], limits: Limits, *, fixed_rows: Mapping[str, int]
    ) -> None:
        """fixed_rows: networks that run at one fixed batch size, padded, so that their results cannot depend on it."""
        self.card = bundle.card
        self.capacity = slots_of(bundle, limits)
        self._sessions = sessions
        self._shape = self.card.image.shape
        self._elements = _elements(bundle)
        self._null = self.card.labels.null if self.card.labels is not None else None
        self._fixed_rows = fixed_rows
        self._state = torch.zeros(self.capacity, self._elements)
        self._anchor = torch.zeros(self.capacity, self._elements)
        self._accumulator: Tensor | None = None

    def warm_up(self, rows: tuple[int, ...] = (1, 2)) -> None:
        """Run every network once at a few batch sizes, so that the first request pays for no set-up."""
        for name, spec in self.card.networks.items():
            for count in rows:
                inputs = {tensor.name: _zeros(tensor, count) for tensor in spec.inputs}
                self._sessions[name].run(inputs)

    def run(self, batch: Batch) -> None:
        """Take every row of the batch one line further; sets `state`, `energy`, `preview`, `failure` on the rows.

        Raises:
            NetworkError: the network could not be run.
        """
        rows = batch.rows
        noises = self._draw(batch)
        self._start([row for row in rows if row.line == 0], noises)
        slots = torch.tensor([row.slot for row in rows])
        outputs = self._network(batch, slots, noises)
        if batch.kind == "ensemble":
            states, predictions = self._ensemble(rows, slots, outputs[0], noises)
            self._record_states(rows, states, previews=predictions)
        elif batch.kind == "langevin":
            states = self._langevin(rows, slots, outputs[1], noises)
            self._record_energies(rows, outputs[0])
            self._record_states(rows, states, previews=states)
        else:
            self._record_energies(rows, outputs[0])

    def _record_states(self, rows: list[Row], states: Tensor, *, previews: Tensor) -> None:
        """Put what the step gave on the rows: failures, final states, and the previews that are wanted."""
        finite = torch.isfinite(states.sum(1)).tolist()
        for index, row in enumerate(rows):
            # A sum of large finite values may overflow, so the row itself decides.
            if not finite[index] and not torch.isfinite(states[index]).all():
                self._fail(row)
            elif row.last:
                row.state = states[index].numpy().copy()
            if row.sample == 0 and row.job.on_preview is not None:
                row.preview = previews[index].numpy().copy()

    def _record_energies(self, rows: list[Row], energies: Tensor) -> None:
        for row, energy in zip(rows, energies.tolist(), strict=True):
            row.energy = energy
            if not isfinite(energy):
                self._fail(row)

    @staticmethod
    def _fail(row: Row) -> None:
        step = f"step {row.line + 1} of {len(row.program.lines)}"
        row.failure = Internal(f"sample {row.sample} of seed {row.seed} became non-finite at {step}")

    # -- parts of a step ------------------------------------------------------------------------

    def _draw(self, batch: Batch) -> _Noises:
        """All noise of the step in as few generator calls as there are sizes (usually one)."""
        latent = next((s for s in self.card.networks[batch.network].inputs if s.name == "latent"), None)
        wanted: dict[int, list[tuple[Row, int]]] = {}
        for row in batch.rows:
            line = row.current
            if row.line == 0 and row.program.noise_scale:
                wanted.setdefault(self._elements, []).append((row, Program.FIRST_DRAW))
            if line.noise is not None:
                wanted.setdefault(self._elements, []).append((row, line.noise))
            if latent is not None and line.latent is not None:
                wanted.setdefault(latent.elements, []).append((row, line.latent))
        noises: _Noises = {}
        for elements, keys in wanted.items():
            seeds, samples, draws = [k.seed for k, _ in keys], [k.sample for k, _ in keys], [d for _, d in keys]
            values = torch.from_numpy(normal(seeds, samples, draws, elements))
            for (row, draw), value in zip(keys, values, strict=True):
                noises[row.slot, draw] = value
        return noises

    def _start(self, rows: list[Row], noises: _Noises) -> None:
        """Fill the slots of rows at their first line; see `models.program.Program`."""
        for row in rows:
            program, slot = row.program, row.slot
            x = self._state[slot]
            if program.noise_scale:
                torch.mul(noises[slot, Program.FIRST_DRAW], program.noise_scale, out=x)
            else:
                x.zero_()
            if program.needs_image:
                x += program.image_scale * torch.from_numpy(row.image)
            self._anchor[slot] = x
            if program.uses_accumulator:
                self._accumulators()[slot] = x
            elif self._accumulator is not None:
                # Its coefficient is 0 for this row, but what another row left there may be NaN.
                self._accumulator[slot] = 0.0

    def _accumulators(self) -> Tensor:
        if self._accumulator is None:
            self._accumulator = torch.zeros_like(self._state)
        return self._accumulator

    def _network(self, batch: Batch, slots: Tensor, noises: _Noises) -> tuple[Tensor, ...]:
        """Run the network on all rows and, behind them, once more on the guided rows with the null label."""
        rows = batch.rows
        guided = [index for index, row in enumerate(rows) if row.current.guided]
        order = [*range(len(rows)), *guided]
        inputs: dict[str, Tensor] = {}
        for spec in self.card.networks[batch.network].inputs:
            if spec.name == "sample":
                picked = slots if not guided else slots[torch.tensor(order)]
                inputs["sample"] = self._state.index_select(0, picked).view(-1, *self._shape)
            elif spec.name == "label":
                labels = [self._null if row.label is None else row.label for row in rows]
                inputs["label"] = torch.tensor([*labels, *(self._null for _ in guided)])
            elif spec.name == "latent":
                latents = torch.stack([noises[rows[i].slot, _latent(rows[i])] for i in order])
                inputs["latent"] = latents.view(-1, *spec.shape)
            else:
                inputs[spec.name] = torch.tensor([rows[i].current.scalars[spec.name] for i in order])
        fixed = self._fixed_rows.get(batch.network)
        if fixed is not None:
            inputs = {name: _pad(tensor, fixed) for name, tensor in inputs.items()}
        try:
            outputs = self._sessions[batch.network].run(inputs)
        except Exception as error:
            raise NetworkError(f"network {batch.network} failed: {error}") from error
        return tuple(output[: len(order)] for output in outputs)

    def _ensemble(self, rows: list[Row], slots: Tensor, output: Tensor, noises: _Noises) -> tuple[Tensor, Tensor]:
        """The new states and the predictions."""
        count = len(rows)
        flat = output.reshape(-1, self._elements)
        out, null = flat[:count], None
        if len(flat) > count:
            null = out.clone()
            null[torch.tensor([row.current.guided for row in rows])] = flat[count:]
        states, prediction = ensemble_step(
            self._state,
            slots,
            out,
            _coefficients(rows),
            anchor=self._anchor,
            null_output=null,
            accumulator=self._accumulator if any(row.program.uses_accumulator for row in rows) else None,
            history=self._weighted_history(rows),
            noise=self._update_noise(rows, noises),
        )
        for index, row in enumerate(rows):
            if row.program.keeps_history and not row.last:
                row.history.append(prediction[index].clone())
        return states, prediction

    def _langevin(self, rows: list[Row], slots: Tensor, output: Tensor, noises: _Noises) -> Tensor:
        """The new states."""
        gradient = output.reshape(len(rows), self._elements)
        noise = self._update_noise(rows, noises)
        states, _ = langevin_step(self._state, slots, gradient, _coefficients(rows), anchor=self._anchor, noise=noise)
        return states

    def _weighted_history(self, rows: list[Row]) -> Tensor | None:
        if not any(row.current.history for row in rows):
            return None
        total = torch.zeros(len(rows), self._elements)
        for index, row in enumerate(rows):
            for weight, before in zip(row.current.history, row.history, strict=False):
                total[index] += weight * before
        return total

    def _update_noise(self, rows: list[Row], noises: _Noises) -> Tensor | None:
        if all(row.current.noise is None for row in rows):
            return None
        zero = torch.zeros(self._elements)
        return torch.stack([zero if row.current.noise is None else noises[row.slot, row.current.noise] for row in rows])


_Noises = dict[tuple[int, int], Tensor]  # (slot, draw) -> (elements,)


def _latent(row: Row) -> int:
    if row.current.latent is None:
        raise Internal(f"the program gives no latent at step {row.line + 1}, which the network takes")
    return row.current.latent


def _coefficients(rows: list[Row]) -> Tensor:
    return torch.from_numpy(np.stack([row.program.coefficients[row.line] for row in rows]))


def _pad(tensor: Tensor, rows: int) -> Tensor:
    """Repeat the last row up to the fixed batch size; a batch above it stays as it is."""
    missing = rows - len(tensor)
    return tensor if missing <= 0 else torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])]).contiguous()


def _zeros(spec: TensorSpec, rows: int) -> Tensor:
    return torch.zeros(rows, *spec.shape, dtype=torch.int64 if spec.dtype == "int64" else torch.float32)
