"""What comes back from the device after a step, and how it gets onto the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import hypot, isfinite

from torch import Tensor

from models.program import EnsembleUpdate, LangevinUpdate

from ...types import Batch, Row
from ..protocols import non_finite
from .plan import Target
from .step import ENERGY, FINITE, LEVEL, NORM, Results
from .stream import Mark

Shown = tuple[Sequence[Row], Tensor | None]
"""Rows, and a picture of each, `(rows, elements)`."""


@dataclass(slots=True)
class Downloads:
    """Tensors of the host, to be read once the marks have passed.

    results: as `Results`. finals: states after the last line. shown: what callers see of the step.
    """

    results: Tensor
    finals: Shown
    shown: tuple[Shown, ...]


class DeviceStep:
    """A step that the device has been given; see `server.loop.protocols.Step`."""

    def __init__(
        self,
        batch: Batch,
        numbers: Sequence[int],
        results: Results,
        downloads: Downloads,
        marks: tuple[Mark, Mark, Mark],
        let_go: Callable[[], None],
    ) -> None:
        """
        numbers: of the lines that the rows took. marks: before the step, behind it, and behind all that it gives.
        let_go: called once the device has read what it was told.
        """
        self._rows, self._kind = batch.rows, batch.kind
        self._numbers = numbers  # rows go on before the step has finished
        self._lines = [row.program.lines[number] for row, number in zip(batch.rows, numbers, strict=True)]
        self._places = results.row_of
        self._downloads = downloads
        self._began, self._ended, self._arrived = marks
        self._let_go = let_go

    def finish(self) -> float:
        """See `Step.finish`; the seconds are the device's, for the whole step."""
        self._arrived.wait()  # may tell that the device is lost
        self._let_go()
        values: list[list[float]] = self._downloads.results.tolist()
        if self._kind != "ensemble":
            self._record_energies(values[self._places[ENERGY]])
        for index, row in enumerate(self._rows):
            for update in self._lines[index].updates:
                target = Target(update.register, type(update.rule), update.output)
                self._record_update(row, index, target, values)
        rows, states = self._downloads.finals
        for row, state in zip(rows, states.numpy() if states is not None else (), strict=True):
            row.state = state
        for rows, pictures in self._downloads.shown:
            if pictures is not None:
                for row, picture in zip(rows, pictures.numpy(), strict=True):
                    row.preview = picture
        return self._ended.seconds_since(self._began)

    def _record_energies(self, energies: Sequence[float]) -> None:
        scores = self._kind == "score"
        for index, row in enumerate(self._rows):
            if scores:
                row.scores.append(energies[index])
            else:
                row.energy, row.gradient_norm = energies[index], None
            if not isfinite(energies[index]) and self._kind != "metropolis":  # a proposal may be anywhere
                self._fail(row, index)

    def _record_update(self, row: Row, index: int, target: Target, values: Sequence[Sequence[float]]) -> None:
        if values[self._places[target, FINITE]][index]:
            self._fail(row, index)
        if target.rule is EnsembleUpdate:
            return
        norm = values[self._places[target, NORM]][index]
        if target.rule is LangevinUpdate:
            row.gradient_norm = norm if row.gradient_norm is None else hypot(row.gradient_norm, norm)
        else:
            row.energy, row.gradient_norm = values[self._places[target, LEVEL]][index], norm
            if not isfinite(row.energy):
                self._fail(row, index)

    def _fail(self, row: Row, index: int) -> None:
        row.failure = row.failure or non_finite(row, self._numbers[index])


class Turn:
    """Steps of one batch, one after the other; see `server.loop.protocols.Step`."""

    def __init__(self, steps: Sequence[DeviceStep]) -> None:
        self._steps = steps

    def finish(self) -> float:
        """See `Step.finish`."""
        return sum(step.finish() for step in self._steps)
