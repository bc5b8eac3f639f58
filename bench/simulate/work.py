"""The work that a replica has left: what no router can know, and only the bound that looks inside is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from server.types import Batch, Job

from .costs import Group
from .traffic import CompiledCall


class WorkLeft:
    """Device seconds that the calls sent to one replica still take, each row at its share of a full batch.

    changed: told of every new value.
    """

    def __init__(self, row_seconds: Mapping[Group, float], changed: Callable[[float], None]) -> None:
        self._row_seconds = row_seconds
        self._changed = changed
        self._seconds = 0.0
        self._jobs: dict[Job, float] = {}

    def of(self, call: CompiledCall) -> float:
        """What a call takes in all."""
        return sum(self._row_seconds[group] * rows for group, rows in call.lines.items())

    def sent(self, call: CompiledCall) -> None:
        """A call is on its way to the replica."""
        self._add(self.of(call))

    def submitted(self, job: Job, call: CompiledCall) -> None:
        """It has become a job."""
        self._jobs[job] = self.of(call)

    def ran(self, batch: Batch) -> None:
        """A batch has run, and its rows have not gone on yet."""
        share = self._row_seconds[Group(batch.model.name, batch.network, batch.kind)]
        done = 0.0
        for row in batch.rows:
            if row.job in self._jobs:  # else it ended while other rows of it were being taken into the batch
                self._jobs[row.job] -= share * row.network_rows
                done += share * row.network_rows
        self._add(-done)

    def ended(self, job: Job) -> None:
        """A job has ended, well or not: what it had left is nothing to wait for."""
        self._add(-self._jobs.pop(job))

    def refused(self, call: CompiledCall) -> None:
        """A call has not become a job."""
        self._add(-self.of(call))

    def _add(self, seconds: float) -> None:
        self._seconds += seconds
        self._changed(self._seconds)
