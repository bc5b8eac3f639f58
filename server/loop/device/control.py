"""What the host tells the device of a step: which rows, with which numbers. One buffer, one copy a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kernels.launch import ANCHORS, COPY, STARTS
from models.card import ModelCard
from models.program import SAMPLE, EnsembleUpdate, LangevinUpdate, Line, MetropolisUpdate, Rule, Update

from ...errors import Internal
from ...types import Row
from .plan import Plan, Target

COLUMNS: dict[type[Rule], int] = {
    rule: len(rule._fields) for rule in (EnsembleUpdate, LangevinUpdate, MetropolisUpdate)
}
NOISE_COLUMN: dict[type[Rule], int] = {rule: rule._fields.index("noise") for rule in (EnsembleUpdate, LangevinUpdate)}
"""Where a rule has the coefficient of its noise. MALA's comes from its step, which is 0 where no noise is drawn."""

ALIGNMENT = 256
"""Bytes to which columns are aligned: networks take some of them as inputs, and TensorRT wants those so."""


class Kept(NamedTuple):
    """Which predictions rows weight and keep, as in `kernels.launch.History`."""

    slots: Any
    weights: Any
    counts: Any
    keep: Any


class _Columns:
    """Hands out one aligned column of a buffer after the other."""

    def __init__(self, view: Callable[[slice, str, tuple[int, ...]], Any]) -> None:
        """view: bytes of the buffer as numbers of a type ("int64" or "float32"), in a shape."""
        self.used = 0
        self._view = view

    def take(self, dtype: str, shape: tuple[int, ...]) -> Any:
        start = -(-self.used // ALIGNMENT) * ALIGNMENT
        self.used = start + np.dtype(dtype).itemsize * prod(shape)
        return self._view(slice(start, self.used), dtype, shape)


class Updates(NamedTuple):
    """A target's part of a control: `(rows,)` int64 each, and its coefficients, float32 `(rows, columns)`.

    Rows that the target leaves alone have the scratch slot and coefficients of 0. samples, draws: keys of the noise.
    decisions: draws. shown: place of the row's prediction among those that the host wants, or -1.
    """

    slots: Any
    samples: Any
    draws: Any
    decisions: Any
    shown: Any
    coefficients: Any


class Control:
    """The numbers of one step of `rows` network rows by one plan, side by side in one buffer.

    Network rows are the batch's rows, then the guided ones once more with the null label, then padding, which works on
    the scratch slot. All but stds, scalars and coefficients are int64 `(rows,)`; these are float32.
    slots: of the states. labels. seeds, samples: keys of noise. starts: the sample whose noise a row starts from.
    images: place of the row's image among those of the step, or -1. latents: draws. null_rows: of each row, where its
    null output is. collected: `(2 rows,)`, slots whose states the host gets, at the end or on the way. modes, stds: by
    register, what `kernels.gather` does with the row. scalars: the network's inputs of that name.
    kept: where a row may keep predictions. Its slots and weights lie behind all others, as hardly any step needs them:
    `head` is the number of bytes before.
    """

    def __init__(self, card: ModelCard, plan: Plan, rows: int, kept: int, columns: _Columns) -> None:
        """kept: how many predictions a row may keep."""
        registers, take = list(card.register_shapes()), columns.take

        def integers() -> Any:
            return take("int64", (rows,))

        self.slots, self.labels, self.seeds, self.samples, self.starts = (integers() for _ in range(5))
        self.images, self.latents, self.null_rows = (integers() for _ in range(3))
        self.collected = take("int64", (2 * rows,))
        self.modes = {name: integers() for name in registers}
        wide = [tuple(integers() for _ in range(5)) for _ in plan.targets]
        self.stds = {name: take("float32", (rows,)) for name in registers}
        self.scalars = {name: take("float32", (rows,)) for name in scalar_inputs(card, plan.network)}
        self.updates = {
            target: Updates(slots, samples, draws, decisions, shown, take("float32", (rows, COLUMNS[target.rule])))
            for target, (slots, samples, draws, decisions, shown) in zip(plan.targets, wide, strict=True)
        }
        self.kept: Kept | None = None
        own = [integers() for _ in range(2)] if kept else []
        self.head = columns.used
        if kept:
            self.kept = Kept(take("int64", (rows, kept)), take("float32", (rows, kept)), *own)

    @classmethod
    def size(cls, card: ModelCard, plan: Plan, rows: int, kept: int) -> int:
        """Bytes of the buffer."""
        columns = _Columns(lambda *_: None)
        cls(card, plan, rows, kept, columns)
        return columns.used

    @classmethod
    def on_device(cls, card: ModelCard, plan: Plan, rows: int, kept: int, buffer: Tensor) -> Control:
        """Its columns are tensors. buffer: uint8, of `size` bytes."""

        def view(at: slice, dtype: str, shape: tuple[int, ...]) -> Tensor:
            return buffer[at].view(getattr(torch, dtype)).view(shape)

        return cls(card, plan, rows, kept, _Columns(view))

    @classmethod
    def on_host(cls, card: ModelCard, plan: Plan, rows: int, kept: int, buffer: npt.NDArray[np.uint8]) -> Control:
        """Its columns are arrays."""

        def view(at: slice, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
            return buffer[at].view(dtype).reshape(shape)

        return cls(card, plan, rows, kept, _Columns(view))


def scalar_inputs(card: ModelCard, network: str) -> list[str]:
    """The inputs of a network that a program's line gives by name."""
    taken = {"label", "latent", *card.register_shapes()}
    return [tensor.name for tensor in card.networks[network].inputs if tensor.name not in taken]


class Wanted:
    """What the host wants of a step besides its numbers, in the order in which the device gives it.

    finals: rows whose last line this is. places: rows whose state is shown. predictions: rows whose prediction is.
    images: those that rows start from, to be given. history: whether a row weights predictions of the steps before.
    """

    def __init__(self) -> None:
        self.finals: list[Row] = []
        self.places: list[Row] = []
        self.predictions: list[Row] = []
        self.images: list[npt.NDArray[np.float32]] = []
        self.history = False


def write(
    control: Control, card: ModelCard, plan: Plan, rows: Sequence[Row], numbers: Sequence[int], scratch: int
) -> Wanted:
    """Write a step down in a control on the host.

    numbers: of the lines that the rows take. scratch: the slot of the padding.
    """
    wanted = Wanted()
    lines = [row.program.lines[number] for row, number in zip(rows, numbers, strict=True)]
    firsts = [number == 0 for number in numbers]
    lasts = [number + 1 == len(row.program.lines) for row, number in zip(rows, numbers, strict=True)]
    guided = [index for index, line in enumerate(lines) if line.guided]
    order = [*range(len(rows)), *guided]
    _write_network_rows(control, card, plan, rows, lines, guided, scratch)
    _write_starts(control, rows, lines, firsts, order, wanted)
    for target, updates in control.updates.items():
        _write_updates(updates, target, rows, lines, scratch, wanted)
    if control.kept is not None:
        _write_kept(control.kept, rows, numbers, wanted)
    wanted.finals = [row for row, last in zip(rows, lasts, strict=True) if last]
    _put(control.collected, [row.slot for row in (*wanted.finals, *wanted.places)], scratch)
    return wanted


def _write_network_rows(
    control: Control,
    card: ModelCard,
    plan: Plan,
    rows: Sequence[Row],
    lines: Sequence[Line],
    guided: Sequence[int],
    scratch: int,
) -> None:
    order = [*range(len(rows)), *guided]
    null = (card.labels.null if card.labels is not None else None) or 0
    _put(control.slots, [rows[i].slot for i in order], scratch)
    _put(control.labels, [*(null if row.label is None else row.label for row in rows), *(null for _ in guided)], null)
    _put(control.seeds, np.array([rows[i].seed for i in order], dtype=np.uint64).view(np.int64), 0)
    _put(control.samples, [rows[i].sample for i in order], 0)
    _put(control.starts, [0 if rows[i].program.shared_start else rows[i].sample for i in order], 0)
    if any(tensor.name == "latent" for tensor in card.networks[plan.network].inputs):
        _put(control.latents, [_latent(lines[i]) for i in order], 0)
    for name, column in control.scalars.items():
        values = [lines[i].scalars[name] for i in order]
        _put(column, values, values[0])
    control.null_rows[:] = np.arange(len(control.null_rows))
    control.null_rows[list(guided)] = range(len(rows), len(order))


def _write_starts(
    control: Control,
    rows: Sequence[Row],
    lines: Sequence[Line],
    firsts: Sequence[bool],
    order: Sequence[int],
    wanted: Wanted,
) -> None:
    """How rows start (`models.program.Program`), and which registers become their own anchors."""
    images = [-1] * len(rows)
    for index, row in enumerate(rows):
        if firsts[index] and row.program.needs_image:
            images[index] = len(wanted.images)
            wanted.images.append(np.float32(row.program.image_scale) * row.image)
    _put(control.images, [images[i] for i in order], -1)
    for register, modes in control.modes.items():
        own = [
            STARTS if first else ANCHORS if _anchors(line, register) else 0
            for first, line in zip(firsts, lines, strict=True)
        ]
        _put(modes, [*own, *(own[i] | COPY for i in order[len(rows) :])], COPY)
        _put(control.stds[register], [rows[i].program.start_std(register) for i in order], 0.0)


def _write_updates(
    updates: Updates,
    target: Target,
    rows: Sequence[Row],
    lines: Sequence[Line],
    scratch: int,
    wanted: Wanted,
) -> None:
    found = [_update(line, target) for line in lines]
    places = [-1] * len(rows)
    updates.coefficients[...] = 0.0
    for place, (row, update) in enumerate(zip(rows, found, strict=True)):
        if update is None:
            continue
        updates.coefficients[place] = update.coefficients
        if update.noise is None and target.rule in NOISE_COLUMN:
            updates.coefficients[place, NOISE_COLUMN[target.rule]] = 0.0
        if target.register == SAMPLE and row.sample == 0 and row.job.on_preview is not None:
            if target.rule is EnsembleUpdate:
                places[place] = len(wanted.predictions)
                wanted.predictions.append(row)
            else:
                wanted.places.append(row)
    _put(updates.slots, [scratch if u is None else row.slot for row, u in zip(rows, found, strict=True)], scratch)
    _put(updates.samples, [0 if u is None or u.shared else row.sample for row, u in zip(rows, found, strict=True)], 0)
    _put(updates.draws, [0 if u is None or u.noise is None else u.noise for u in found], 0)
    _put(updates.decisions, [0 if u is None or u.decision is None else u.decision for u in found], 0)
    _put(updates.shown, places, -1)


def _write_kept(kept: Kept, rows: Sequence[Row], numbers: Sequence[int], wanted: Wanted) -> None:
    """Which predictions rows weight (iDDIM eq. 4), and where they keep that of this step."""
    counts, keep = [0] * len(rows), [-1] * len(rows)
    for place, (row, number) in enumerate(zip(rows, numbers, strict=True)):
        if number < len(row.kept):
            keep[place] = row.kept[number]
        weights = row.program.lines[number].updates[0].history if row.kept else ()
        if weights:
            if not wanted.history:
                kept.slots[...] = 0  # what was there before may be no slot
            wanted.history = True
            counts[place] = len(weights)
            kept.slots[place, : len(weights)] = row.kept[: len(weights)]
            kept.weights[place, : len(weights)] = weights
    _put(kept.counts, counts, 0)
    _put(kept.keep, keep, -1)


def _update(line: Line, target: Target) -> Update | None:
    return next((u for u in line.updates if (u.register, type(u.rule), u.output) == target), None)


def _anchors(line: Line, register: str) -> bool:
    return line.sets_anchor and any(update.register == register for update in line.updates)


def _latent(line: Line) -> int:
    if line.latent is None:
        raise Internal(f"the program gives no latent for a step of network {line.network}, which takes one")
    return line.latent


def _put(column: npt.NDArray[Any], values: Any, padding: float) -> None:
    column[: len(values)] = values
    column[len(values) :] = padding
