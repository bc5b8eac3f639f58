"""Runs one batch: gather the rows' states, run the network once, apply the fused update, scatter.

State lives in pools with one slot a row; the runner knows programs and kernels, and no paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import hypot, isfinite, prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from export.runtime import Session
from kernels.philox import normal
from kernels.reference import ensemble_step, langevin_step, metropolis_step
from models.bundle import Bundle, ModelCard, TensorSpec
from models.program import SAMPLE, EnsembleUpdate, LangevinUpdate, Program, Update, start_draw

from ..config import Limits
from ..errors import Internal
from ..types import Batch, Row

FLOAT_BYTES = 4


def slot_bytes(bundle: Bundle) -> int:
    """Bytes of one row's slot: its registers and their anchors, and the sample's accumulator."""
    elements = _elements(bundle.card)
    return FLOAT_BYTES * (2 * sum(elements.values()) + elements[SAMPLE])


def slots_of(bundle: Bundle, limits: Limits) -> int:
    """How many rows of a model may be in flight."""
    return max(1, min(limits.max_rows_in_flight, limits.state_bytes // slot_bytes(bundle)))


def row_bytes(bundle: Bundle, program: Program) -> int:
    """Bytes that one row may come to hold: slot, result, image, what MALA keeps, and every prediction for `custom`."""
    images = program.uses_accumulator + program.needs_image + 1
    images += len(program.lines) if program.keeps_history else 0
    images += 2 if program.lines[-1].kind == "metropolis" else 0
    return slot_bytes(bundle) + images * FLOAT_BYTES * _elements(bundle.card)[SAMPLE]


def _elements(card: ModelCard) -> dict[str, int]:
    """Elements of every register, `sample` first."""
    return {name: prod(shape) for name, shape in card.register_shapes().items()}


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
        self._shapes = self.card.register_shapes()
        self._elements = _elements(self.card)
        self._null = self.card.labels.null if self.card.labels is not None else None
        self._fixed_rows = fixed_rows
        self._state = {name: torch.zeros(self.capacity, size) for name, size in self._elements.items()}
        self._anchor = {name: torch.zeros(self.capacity, size) for name, size in self._elements.items()}
        self._accumulator: Tensor | None = None
        self._kept: tuple[Tensor, Tensor, Tensor] | None = None

    def warm_up(self, rows: tuple[int, ...] = (1, 2)) -> None:
        """Run every network once at a few batch sizes, so that the first request pays for no set-up."""
        for name, spec in self.card.networks.items():
            for count in rows:
                inputs = {tensor.name: _zeros(tensor, count) for tensor in spec.inputs}
                self._sessions[name].run(inputs)

    def run(self, batch: Batch) -> None:
        """Take every row of the batch one line further; what that gives is put on the rows (`server.types.Row`).

        Raises:
            NetworkError: the network could not be run.
        """
        rows = batch.rows
        noises = self._draw(batch)
        self._start([row for row in rows if row.line == 0], noises)
        outputs = self._network(batch, torch.tensor([row.slot for row in rows]), noises)
        if batch.kind == "score":
            self._record_scores(rows, outputs[0])
        else:
            if batch.kind != "ensemble":
                self._record_energies(rows, outputs[0])
            self._set_anchors(rows)
            for members in _by_target(rows).values():
                self._update(members, len(rows), outputs, noises)
        for row in rows:
            if row.last:
                row.state = self._state[SAMPLE][row.slot].numpy().copy()

    # -- parts of a step ------------------------------------------------------------------------

    def _draw(self, batch: Batch) -> _Noises:
        """All noise of the step in as few generator calls as there are sizes (usually one)."""
        latent = next((s for s in self.card.networks[batch.network].inputs if s.name == "latent"), None)
        wanted: dict[int, list[tuple[Row, int, int]]] = {}
        for row in batch.rows:
            line, program = row.current, row.program
            if row.line == 0:
                sample = 0 if program.shared_start else row.sample
                for index, (name, elements) in enumerate(self._elements.items()):
                    if program.noise_scale if name == SAMPLE else program.registers.get(name):
                        wanted.setdefault(elements, []).append((row, start_draw(index), sample))
            for update in line.updates:
                if update.noise is not None:
                    sample = 0 if update.shared else row.sample
                    wanted.setdefault(self._elements[update.register], []).append((row, update.noise, sample))
                if update.decision is not None:
                    wanted.setdefault(1, []).append((row, update.decision, row.sample))
            if latent is not None and line.latent is not None:
                wanted.setdefault(latent.elements, []).append((row, line.latent, row.sample))
        noises: _Noises = {}
        for elements, keys in wanted.items():
            seeds, draws = [row.seed for row, _, _ in keys], [draw for _, draw, _ in keys]
            values = torch.from_numpy(normal(seeds, [sample for _, _, sample in keys], draws, elements))
            for (row, draw, _), value in zip(keys, values, strict=True):
                noises[row.slot, draw] = value
        return noises

    def _start(self, rows: list[Row], noises: _Noises) -> None:
        """Fill the slots of rows at their first line; see `models.program.Program`."""
        for row in rows:
            program, slot = row.program, row.slot
            for index, name in enumerate(self._state):
                x = self._state[name][slot]
                std = program.noise_scale if name == SAMPLE else program.registers.get(name, 0.0)
                if std:
                    torch.mul(noises[slot, start_draw(index)], std, out=x)
                else:
                    x.zero_()
                if name == SAMPLE and program.needs_image:
                    x += program.image_scale * torch.from_numpy(row.image)
                self._anchor[name][slot] = x
            if program.uses_accumulator:
                self._accumulators()[slot] = self._state[SAMPLE][slot]
            elif self._accumulator is not None:
                # Its coefficient is 0 for this row, but what another row left there may be NaN.
                self._accumulator[slot] = 0.0

    def _accumulators(self) -> Tensor:
        if self._accumulator is None:
            self._accumulator = torch.zeros_like(self._state[SAMPLE])
        return self._accumulator

    def _kept_pools(self) -> tuple[Tensor, Tensor, Tensor]:
        """Place, slope and level of `kernels.reference.metropolis_step`; made when the first row needs them."""
        if self._kept is None:
            like = self._state[SAMPLE]
            self._kept = torch.zeros_like(like), torch.zeros_like(like), torch.zeros(self.capacity)
        return self._kept

    def _network(self, batch: Batch, slots: Tensor, noises: _Noises) -> tuple[Tensor, ...]:
        """Run the network on all rows and, behind them, once more on the guided rows with the null label."""
        rows = batch.rows
        guided = [index for index, row in enumerate(rows) if row.current.guided]
        order = [*range(len(rows)), *guided]
        picked = slots if not guided else slots[torch.tensor(order)]
        inputs: dict[str, Tensor] = {}
        for spec in self.card.networks[batch.network].inputs:
            if spec.name in self._state:
                pool = self._state[spec.name]
                inputs[spec.name] = pool.index_select(0, picked).view(-1, *self._shapes[spec.name])
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

    def _set_anchors(self, rows: list[Row]) -> None:
        for row in rows:
            if row.current.sets_anchor:
                for update in row.current.updates:
                    self._anchor[update.register][row.slot] = self._state[update.register][row.slot]

    def _update(self, members: list[_Member], count: int, outputs: tuple[Tensor, ...], noises: _Noises) -> None:
        """Apply updates of one kind on one register. count: rows of the batch, which the guided ones stand behind."""
        rows, updates = [member.row for member in members], [member.update for member in members]
        slots = torch.tensor([row.slot for row in rows])
        register, kind = updates[0].register, type(updates[0].rule)
        out = outputs[updates[0].output].reshape(-1, self._elements[register])
        conditional, unconditional = out[:count], out[count:]
        if len(members) < count:
            conditional = conditional[torch.tensor([member.place for member in members])]
        noise = self._update_noise(members, noises)
        coefficients = _coefficients(updates)
        if kind is EnsembleUpdate:
            states, previews = self._ensemble(rows, register, slots, conditional, unconditional, coefficients, noise)
        elif kind is LangevinUpdate:
            pools = self._state[register], self._anchor[register]
            states, norms = langevin_step(pools[0], slots, conditional, coefficients, anchor=pools[1], noise=noise)
            previews = states
            for row, norm in zip(rows, norms.tolist(), strict=True):
                row.gradient_norm = norm if row.gradient_norm is None else hypot(row.gradient_norm, norm)
        else:
            states = previews = self._metropolis(members, slots, outputs[0], conditional, coefficients, noise, noises)
        self._record_states(rows, states, previews if register == SAMPLE else None)

    def _ensemble(
        self,
        rows: list[Row],
        register: str,
        slots: Tensor,
        output: Tensor,
        unconditional: Tensor,
        coefficients: Tensor,
        noise: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The new states and the predictions."""
        null = None
        if len(unconditional):
            null = output.clone()
            null[torch.tensor([row.current.guided for row in rows])] = unconditional
        accumulates = register == SAMPLE and any(row.program.uses_accumulator for row in rows)
        states, prediction = ensemble_step(
            self._state[register],
            slots,
            output,
            coefficients,
            anchor=self._anchor[register],
            null_output=null,
            accumulator=self._accumulator if accumulates else None,
            history=self._weighted_history(rows) if register == SAMPLE else None,
            noise=noise,
        )
        for index, row in enumerate(rows):
            if row.program.keeps_history and not row.last:
                row.history.append(prediction[index].clone())
        return states, prediction

    def _metropolis(
        self,
        members: list[_Member],
        slots: Tensor,
        energies: Tensor,
        gradient: Tensor,
        coefficients: Tensor,
        noise: Tensor | None,
        noises: _Noises,
    ) -> Tensor:
        """The places of the chains; the energies and the gradients' norms that the rows get are those there."""
        place, slope, level = self._kept_pools()
        decided = [None if m.update.decision is None else noises[m.row.slot, m.update.decision] for m in members]
        places, levels = metropolis_step(
            self._state[SAMPLE],
            slots,
            energies[torch.tensor([member.place for member in members])],
            gradient,
            coefficients,
            place=place,
            slope=slope,
            level=level,
            decision=torch.tensor([0.0 if value is None else float(value) for value in decided]),
            noise=noise,
        )
        norms = slope.index_select(0, slots).double().square().sum(1).sqrt().tolist()
        for member, energy, norm in zip(members, levels.tolist(), norms, strict=True):
            member.row.energy, member.row.gradient_norm = energy, norm
            if not isfinite(energy):
                self._fail(member.row)
        return places

    def _weighted_history(self, rows: list[Row]) -> Tensor | None:
        if not any(row.current.updates[0].history for row in rows):
            return None
        total = torch.zeros(len(rows), self._elements[SAMPLE])
        for index, row in enumerate(rows):
            for weight, before in zip(row.current.updates[0].history, row.history, strict=False):
                total[index] += weight * before
        return total

    def _update_noise(self, members: list[_Member], noises: _Noises) -> Tensor | None:
        if all(member.update.noise is None for member in members):
            return None
        zero = torch.zeros(self._elements[members[0].update.register])
        keys = [(member.row.slot, member.update.noise) for member in members]
        return torch.stack([zero if draw is None else noises[slot, draw] for slot, draw in keys])

    # -- what it gave ---------------------------------------------------------------------------

    def _record_states(self, rows: list[Row], states: Tensor, previews: Tensor | None) -> None:
        """Put on the rows what is not finite, and the previews that are wanted."""
        finite = torch.isfinite(states.sum(1)).tolist()
        for index, row in enumerate(rows):
            # A sum of large finite values may overflow, so the row itself decides.
            if not finite[index] and not torch.isfinite(states[index]).all():
                self._fail(row)
            if previews is not None and row.sample == 0 and row.job.on_preview is not None:
                row.preview = previews[index].numpy().copy()

    def _record_energies(self, rows: list[Row], energies: Tensor) -> None:
        for row, energy in zip(rows, energies.tolist(), strict=True):
            row.energy, row.gradient_norm = energy, None
            if not isfinite(energy) and row.current.kind != "metropolis":  # a proposal may be anywhere: it is refused
                self._fail(row)

    def _record_scores(self, rows: list[Row], energies: Tensor) -> None:
        for row, energy in zip(rows, energies.tolist(), strict=True):
            row.scores.append(energy)
            if not isfinite(energy):
                self._fail(row)

    @staticmethod
    def _fail(row: Row) -> None:
        step = f"step {row.line + 1} of {len(row.program.lines)}"
        row.failure = Internal(f"sample {row.sample} of seed {row.seed} became non-finite at {step}")


class _Member(NamedTuple):
    """A row of a batch, its place there, and one update of its line."""

    place: int
    row: Row
    update: Update


def _by_target(rows: list[Row]) -> dict[tuple[str, type, int], list[_Member]]:
    """The updates of a batch by register, kind of rule and network output: those of one entry are one kernel's work."""
    targets: dict[tuple[str, type, int], list[_Member]] = {}
    for index, row in enumerate(rows):
        for update in row.current.updates:
            key = update.register, type(update.rule), update.output
            targets.setdefault(key, []).append(_Member(index, row, update))
    return targets


_Noises = dict[tuple[int, int], Tensor]  # (slot, draw) -> (elements,)


def _latent(row: Row) -> int:
    if row.current.latent is None:
        raise Internal(f"the program gives no latent at step {row.line + 1}, which the network takes")
    return row.current.latent


def _coefficients(updates: list[Update]) -> Tensor:
    return torch.from_numpy(np.stack([update.coefficients for update in updates]))


def _pad(tensor: Tensor, rows: int) -> Tensor:
    """Repeat the last row up to the fixed batch size; a batch above it stays as it is."""
    missing = rows - len(tensor)
    return tensor if missing <= 0 else torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])]).contiguous()


def _zeros(spec: TensorSpec, rows: int) -> Tensor:
    return torch.zeros(rows, *spec.shape, dtype=torch.int64 if spec.dtype == "int64" else torch.float32)
