"""Runs one batch on the CPU: gather the rows' states, run the network once, apply the fused update, scatter.

State lives in pools with one slot a row; the runner knows programs and kernels, and no paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import hypot, isfinite
from time import perf_counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from export.runtime import Array, Session
from kernels.cpu import ensemble_step, langevin_step, metropolis_step
from kernels.philox import normal
from models.bundle import Bundle
from models.card import TensorSpec
from models.program import SAMPLE, EnsembleUpdate, LangevinUpdate, Line, Update, start_draw

from ..config import Limits
from ..errors import Internal
from ..types import Batch, Row
from .protocols import NetworkError, non_finite
from .sizes import RowSizes, elements_of

Floats = npt.NDArray[np.float32]
Slots = npt.NDArray[np.int64]
_Noises = dict[tuple[int, int], Floats]  # (slot, draw) -> (elements,)


class ModelRunner:
    """One loaded model: its sessions and its state pools. Used by the engine's thread alone."""

    def __init__(
        self, bundle: Bundle, sessions: Mapping[str, Session], limits: Limits, *, fixed_rows: Mapping[str, int]
    ) -> None:
        """fixed_rows: networks that run at one fixed batch size, padded, so that their results cannot depend on it."""
        self.card = bundle.card
        self.capacity = RowSizes.of(self.card).slots(limits)
        self._sessions = sessions
        self._shapes = self.card.register_shapes()
        self._elements = elements_of(self.card)
        self._null = self.card.labels.null if self.card.labels is not None else None
        self._fixed_rows = fixed_rows
        self._state = {name: self._pool(size) for name, size in self._elements.items()}
        self._anchor = {name: self._pool(size) for name, size in self._elements.items()}
        self._accumulator: Floats | None = None
        self._chains: tuple[Floats, Floats, Floats] | None = None
        self._predictions: Floats | None = None

    def warm_up(self, rows: tuple[int, ...] = (1, 2)) -> None:
        """Run every network once at a few batch sizes, so that the first request pays for no set-up."""
        for name, spec in self.card.networks.items():
            for count in rows:
                inputs = {tensor.name: _zeros(tensor, count) for tensor in spec.inputs}
                self._sessions[name].run(inputs)

    def enqueue(self, batch: Batch) -> FinishedStep:
        """See `Runner.enqueue`: here the step has run, and its results are on the rows, when this returns."""
        return FinishedStep(self.run(batch))

    def run(self, batch: Batch) -> float:
        """Take every row of the batch one line further; what that gives is put on the rows (`server.types.Row`).

        Returns the seconds that the network took of it.

        Raises:
            NetworkError: the network could not be run.
        """
        rows = batch.rows
        lines = [row.current for row in rows]
        slots = np.array([row.slot for row in rows])
        noises = self._draw(batch.network, rows, lines)
        self._start([row for row in rows if row.line == 0], noises)
        outputs, seconds = self._network(batch, lines, slots, noises)
        if batch.kind == "score":
            self._record_scores(rows, outputs[0])
        else:
            if batch.kind != "ensemble":
                self._record_energies(rows, outputs[0])
            self._set_anchors(rows, lines)
            for members in _by_target(rows, lines).values():
                self._update(members, slots, outputs, noises)
        for row in rows:
            if row.last:
                row.state = self._state[SAMPLE][row.slot].copy()
        return seconds

    # -- parts of a step ------------------------------------------------------------------------

    def _draw(self, network: str, rows: Sequence[Row], lines: Sequence[Line]) -> _Noises:
        """All noise of the step in as few generator calls as there are sizes (usually one)."""
        latent = next((s for s in self.card.networks[network].inputs if s.name == "latent"), None)
        wanted: dict[int, list[tuple[Row, int, int]]] = {}
        for row, line in zip(rows, lines, strict=True):
            if row.line == 0:
                program = row.program
                sample = 0 if program.shared_start else row.sample
                for index, (name, elements) in enumerate(self._elements.items()):
                    if program.start_std(name):
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
            values = normal(seeds, [sample for _, _, sample in keys], draws, elements)
            for (row, draw, _), value in zip(keys, values, strict=True):
                noises[row.slot, draw] = value
        return noises

    def _start(self, rows: Sequence[Row], noises: _Noises) -> None:
        """Fill the slots of rows at their first line; see `models.program.Program`."""
        for row in rows:
            program, slot = row.program, row.slot
            for index, (name, pool) in enumerate(self._state.items()):
                x = pool[slot]
                std = program.start_std(name)
                if std:
                    np.multiply(noises[slot, start_draw(index)], np.float32(std), out=x)
                else:
                    x[...] = 0.0
                if name == SAMPLE and program.needs_image:
                    x += np.float32(program.image_scale) * row.image
                self._anchor[name][slot] = x
            if program.uses_accumulator:
                self._accumulators()[slot] = self._state[SAMPLE][slot]
            elif self._accumulator is not None:
                # Its coefficient is 0 for this row, but what another row left there may be NaN.
                self._accumulator[slot] = 0.0

    def _pool(self, elements: int) -> Floats:
        return np.zeros((self.capacity, elements), dtype=np.float32)

    def _accumulators(self) -> Floats:
        if self._accumulator is None:
            self._accumulator = self._pool(self._elements[SAMPLE])
        return self._accumulator

    def _chain_pools(self) -> tuple[Floats, Floats, Floats]:
        """Place, slope and level of `kernels.cpu.metropolis_step`; made when the first row needs them."""
        if self._chains is None:
            size = self._elements[SAMPLE]
            self._chains = self._pool(size), self._pool(size), np.zeros(self.capacity, dtype=np.float32)
        return self._chains

    def _kept_predictions(self) -> Floats:
        """Of the rows that keep some (`server.types.Row.kept`); made when the first one does."""
        if self._predictions is None:
            self._predictions = self._pool(self._elements[SAMPLE])
        return self._predictions

    def _network(
        self, batch: Batch, lines: Sequence[Line], slots: Slots, noises: _Noises
    ) -> tuple[tuple[Floats, ...], float]:
        """Run the network on all rows and, behind them, once more on the guided rows with the null label.

        Returns its outputs, and the seconds that it took.
        """
        rows = batch.rows
        guided = [index for index, line in enumerate(lines) if line.guided]
        order = [*range(len(rows)), *guided]
        picked = slots[order] if guided else slots
        inputs: dict[str, Array] = {}
        for spec in self.card.networks[batch.network].inputs:
            name = spec.name
            if name in self._state:
                inputs[name] = self._state[name][picked].reshape(-1, *self._shapes[name])
            elif name == "label":
                labels = [self._null if row.label is None else row.label for row in rows]
                inputs[name] = np.array([*labels, *(self._null for _ in guided)], dtype=np.int64)
            elif name == "latent":
                latents = np.stack([noises[rows[i].slot, _latent(rows[i])] for i in order])
                inputs[name] = latents.reshape(-1, *spec.shape)
            else:
                inputs[name] = np.array([lines[i].scalars[name] for i in order], dtype=np.float32)
        fixed = self._fixed_rows.get(batch.network)
        if fixed is not None:
            batch.padding = max(0, fixed - len(order))
            inputs = {name: _pad(array, fixed) for name, array in inputs.items()}
        started = perf_counter()
        try:
            outputs = self._sessions[batch.network].run(inputs)
        except Exception as error:
            raise NetworkError(f"network {batch.network} failed: {error}") from error
        return tuple(output[: len(order)] for output in outputs), perf_counter() - started

    def _set_anchors(self, rows: Sequence[Row], lines: Sequence[Line]) -> None:
        for row, line in zip(rows, lines, strict=True):
            if line.sets_anchor:
                for update in line.updates:
                    self._anchor[update.register][row.slot] = self._state[update.register][row.slot]

    def _update(self, members: Sequence[_Member], slots: Slots, outputs: tuple[Floats, ...], noises: _Noises) -> None:
        """Apply updates of one kind on one register.

        slots: of all rows of the batch, behind whose outputs those of the guided ones stand.
        """
        count = len(slots)
        rows, updates = [member.row for member in members], [member.update for member in members]
        register, rule = updates[0].register, type(updates[0].rule)
        out = outputs[updates[0].output].reshape(-1, self._elements[register])
        conditional, unconditional = out[:count], out[count:]
        if len(members) < count:
            places = [member.place for member in members]
            conditional, slots = conditional[places], slots[places]
        noise = self._update_noise(members, noises)
        coefficients = np.array([update.coefficients for update in updates])
        if rule is EnsembleUpdate:
            states, previews = self._ensemble(rows, register, slots, conditional, unconditional, coefficients, noise)
        elif rule is LangevinUpdate:
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
        rows: Sequence[Row],
        register: str,
        slots: Slots,
        output: Floats,
        unconditional: Floats,
        coefficients: Floats,
        noise: Floats | None,
    ) -> tuple[Floats, Floats]:
        """The new states and the predictions."""
        null = None
        if len(unconditional):
            null = output.copy()
            null[[row.current.guided for row in rows]] = unconditional
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
            if row.kept and not row.last:
                self._kept_predictions()[row.kept[row.line]] = prediction[index]
        return states, prediction

    def _metropolis(
        self,
        members: Sequence[_Member],
        slots: Slots,
        energies: Floats,
        gradient: Floats,
        coefficients: Floats,
        noise: Floats | None,
        noises: _Noises,
    ) -> Floats:
        """The places of the chains; the energies and the gradients' norms that the rows get are those there."""
        place, slope, level = self._chain_pools()
        decided = [None if m.update.decision is None else noises[m.row.slot, m.update.decision] for m in members]
        places, levels, norms = metropolis_step(
            self._state[SAMPLE],
            slots,
            energies[[member.place for member in members]],
            gradient,
            coefficients,
            place=place,
            slope=slope,
            level=level,
            decision=np.array([0.0 if value is None else value[0] for value in decided], dtype=np.float32),
            noise=noise,
        )
        for member, energy, norm in zip(members, levels.tolist(), norms.tolist(), strict=True):
            member.row.energy, member.row.gradient_norm = energy, norm
            if not isfinite(energy):
                self._fail(member.row)
        return places

    def _weighted_history(self, rows: Sequence[Row]) -> Floats | None:
        if not any(row.current.updates[0].history for row in rows):
            return None
        total = np.zeros((len(rows), self._elements[SAMPLE]), dtype=np.float32)
        for index, row in enumerate(rows):
            for weight, slot in zip(row.current.updates[0].history, row.kept, strict=False):
                total[index] += np.float32(weight) * self._kept_predictions()[slot]
        return total

    def _update_noise(self, members: Sequence[_Member], noises: _Noises) -> Floats | None:
        draws = [member.update.noise for member in members]
        if all(draw is None for draw in draws):
            return None
        noise = np.zeros((len(members), self._elements[members[0].update.register]), dtype=np.float32)
        for index, (member, draw) in enumerate(zip(members, draws, strict=True)):
            if draw is not None:
                noise[index] = noises[member.row.slot, draw]
        return noise

    # -- what it gave ---------------------------------------------------------------------------

    def _record_states(self, rows: Sequence[Row], states: Floats, previews: Floats | None) -> None:
        """Put on the rows what is not finite, and the previews that are wanted."""
        # What is not finite shows in the sum. A sum of large finite values may overflow, so the values decide.
        with np.errstate(all="ignore"):
            suspicious = not isfinite(states.sum())
        if suspicious:
            for row, finite in zip(rows, np.isfinite(states).all(axis=1).tolist(), strict=True):  # type: ignore[arg-type]
                if not finite:
                    self._fail(row)
        if previews is not None:
            for index, row in enumerate(rows):
                if row.sample == 0 and row.job.on_preview is not None:
                    row.preview = previews[index].copy()

    def _record_energies(self, rows: Sequence[Row], energies: Floats) -> None:
        for row, energy in zip(rows, energies.tolist(), strict=True):
            row.energy, row.gradient_norm = energy, None
            if not isfinite(energy) and row.current.kind != "metropolis":  # a proposal may be anywhere: it is refused
                self._fail(row)

    def _record_scores(self, rows: Sequence[Row], energies: Floats) -> None:
        for row, energy in zip(rows, energies.tolist(), strict=True):
            row.scores.append(energy)
            if not isfinite(energy):
                self._fail(row)

    @staticmethod
    def _fail(row: Row) -> None:
        row.failure = non_finite(row, row.line)


class FinishedStep(NamedTuple):
    """A step that has run; see `server.loop.protocols.Step`. network_seconds: of it, the network's own."""

    network_seconds: float

    def finish(self) -> float:
        return self.network_seconds


class _Member(NamedTuple):
    """A row of a batch, its place there, and one update of its line."""

    place: int
    row: Row
    update: Update


def _by_target(rows: Sequence[Row], lines: Sequence[Line]) -> dict[tuple[str, type, int], list[_Member]]:
    """The updates of a batch by register, kind of rule and network output: those of one entry are one kernel's work."""
    targets: dict[tuple[str, type, int], list[_Member]] = {}
    for index, (row, line) in enumerate(zip(rows, lines, strict=True)):
        for update in line.updates:
            key = update.register, type(update.rule), update.output
            targets.setdefault(key, []).append(_Member(index, row, update))
    return targets


def _latent(row: Row) -> int:
    if row.current.latent is None:
        raise Internal(f"the program gives no latent at step {row.line + 1}, which the network takes")
    return row.current.latent


def _pad(array: Array, rows: int) -> Array:
    """Repeat the last row up to the fixed batch size; a batch above it stays as it is."""
    missing = rows - len(array)
    return array if missing <= 0 else np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])


def _zeros(spec: TensorSpec, rows: int) -> Array:
    return np.zeros((rows, *spec.shape), dtype=np.int64 if spec.dtype == "int64" else np.float32)
