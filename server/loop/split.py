"""A request on several devices: how its rows are shared out, and how its parts become one again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..errors import ServerError
from ..types import Job
from .engine import Engine

WORTH = 0.9
"""A further device is taken where the last row is then predicted to be done within that share of the time. A device
that takes part pays a step's fixed cost once more, which others would have had use for."""


class DeviceLoad(NamedTuple):
    """What a device has before it, and what a request's rows cost there: all in seconds."""

    ahead: float
    fixed: float
    per_row: float

    def seconds(self, rows: int) -> float:
        """When `rows` rows are done."""
        return self.ahead + self.fixed + self.per_row * rows


def share_out(rows: int, loads: Sequence[DeviceLoad]) -> list[int]:
    """How many of a request's rows go to each device, so that the last is done first, on no more than it is worth.

    loads: one a device. The sum of the result is `rows`.
    """
    places = sorted(range(len(loads)), key=lambda place: loads[place].seconds(1))
    further = (places[:count] for count in range(2, min(rows, len(loads)) + 1))
    ends = [loads[places[0]].seconds(rows), *(_level(rows, [loads[place] for place in taken]) for taken in further)]
    taken = next(count for count, end in enumerate(ends, start=1) if WORTH * end <= min(ends))
    level, widths = ends[taken - 1], [0] * len(loads)
    for place in places[:taken]:
        load = loads[place]
        fitting = (level - load.seconds(0)) / load.per_row if load.per_row else rows
        widths[place] = max(0, min(int(fitting), rows - sum(widths)))
    for _ in range(rows - sum(widths)):  # what rounding has left: fewer than there are devices
        first = min(places[:taken], key=lambda place: loads[place].seconds(widths[place] + 1))
        widths[first] += 1
    return widths


def _level(rows: int, loads: Sequence[DeviceLoad]) -> float:
    """When all devices are done if they end at the same time; infinite where one cannot, as it would be late."""
    if any(load.per_row <= 0.0 for load in loads):
        return float("inf")  # rows cost nothing beside each other: there is nothing to be gained
    level = (rows + sum(load.seconds(0) / load.per_row for load in loads)) / sum(1.0 / load.per_row for load in loads)
    return level if all(load.seconds(1) <= level for load in loads) else float("inf")


class Split:
    """One request as a job on each of several devices: done when all are, failed when one is."""

    def __init__(self, job: Job, widths: Sequence[int], works: Sequence[float], on_end: Callable[[Job], None]) -> None:
        """widths, works: rows and predicted seconds, by device. on_end: told before the job itself is, and once."""
        self._job = job
        self._on_end = on_end
        self._lock = threading.Lock()
        self._takers: list[Engine] = []
        self._told = 0  # of how many parts the end has been told
        self.parts: list[Job] = []
        at = 0
        for device, (width, work) in enumerate(zip(widths, works, strict=True)):
            if width:
                self.parts.append(self._part(at, width, device, work))
                at += width

    def _part(self, at: int, width: int, device: int, work: float) -> Job:
        job = self._job
        part = Job(
            job.model,
            self._on_part,
            priority=job.priority,
            deadline=job.deadline,
            rows=job.rows[at : at + width],
            arrived=job.arrived,
            row_bytes=job.row_bytes,
            trace=job.trace,
            device=device,
            work=work,
        )
        for row in part.rows:
            row.job = part
            if row.sample == 0:
                part.on_preview = job.on_preview
        return part

    @property
    def taken(self) -> int:
        """Parts that their devices have taken."""
        return len(self._takers)

    @property
    def open(self) -> int:
        """Parts that have not ended."""
        return sum(not part.ended for part in self.parts)

    def submit(self, engines: Sequence[Engine]) -> None:
        """Queue every part on its device, or none.

        Raises: as `Engine.submit`.
        """
        with self._lock:  # a part that ends meanwhile waits until all are there
            try:
                for part in self.parts:
                    engines[part.device].submit(part)
                    self._takers.append(engines[part.device])
            except BaseException:
                self._job.ended = True
                self._cancel_parts()
                raise

    def cancel(self) -> None:
        """The caller is gone; nobody is told."""
        with self._lock:
            if not self._job.ended:
                self._job.ended = True
                self._cancel_parts()

    def _cancel_parts(self) -> None:
        for engine, part in zip(self._takers, self.parts, strict=False):  # those that were taken
            engine.cancel(part)

    def _on_part(self, part: Job, error: ServerError | None) -> None:
        """A part has ended, as its engine's thread tells."""
        job = self._job
        with self._lock:
            self._told += 1  # one that has ended may have failed, until its engine has told how
            if job.ended or (error is None and self._told < len(self.parts)):
                return
            job.ended = True
            if error is not None:
                self._cancel_parts()
            self._sum_up()
        self._on_end(job)
        job.on_done(job, error)

    def _sum_up(self) -> None:
        """The times of a request whose parts ran side by side are those of the part that took longest."""
        job, longest = self._job, max(self.parts, key=lambda part: part.compute_seconds)
        job.started = min((part.started for part in self.parts if part.started is not None), default=None)
        job.compute_seconds, job.network_seconds = longest.compute_seconds, longest.network_seconds
        job.batches = sum(part.batches for part in self.parts)
        job.batch_rows = sum(part.batch_rows for part in self.parts)
