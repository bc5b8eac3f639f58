"""Request-level batching, as other servers do it: for comparison, in `python -m bench compare`.

A model's rows run in cohorts: rows that wait are put together when the model is free, go on together until the longest
of them is done, and only then are their jobs answered and the next cohort is formed. A row that is done early keeps its
neighbours' network batches smaller and waits for them.
"""

from __future__ import annotations

import heapq

from ..types import Job, ModelKey, Row
from .ready import ReadyRow


class Cohorts:
    """Who may run: for each model the rows of its running cohort, and those that wait for the next one."""

    def __init__(self) -> None:
        self._waiting: dict[ModelKey, list[ReadyRow]] = {}
        self._running: dict[ModelKey, int] = {}
        self._done: dict[ModelKey, list[Job]] = {}

    def wait(self, entry: ReadyRow) -> None:
        """A row at its first line is to join the next cohort of its model."""
        heapq.heappush(self._waiting.setdefault(entry[2].job.model, []), entry)

    def form(self, model: ModelKey, limit: int) -> list[ReadyRow]:
        """The model's next cohort, of at most `limit` network rows but one row at least; none while one runs."""
        if self._running.get(model):
            return []
        waiting = self._waiting.get(model, [])
        cohort: list[ReadyRow] = []
        taken = 0
        while waiting and (not cohort or taken + waiting[0][2].network_rows <= limit):
            taken += waiting[0][2].network_rows
            cohort.append(heapq.heappop(waiting))
        if cohort:
            self._running[model] = len(cohort)
        return cohort

    def next_network(self, model: ModelKey) -> str | None:
        """The network that the model's next cohort starts with; None where nobody waits."""
        waiting = self._waiting.get(model)
        return waiting[0][2].current.network if waiting else None

    def finish(self, job: Job) -> None:
        """All rows of a job are done: it is answered with its cohort, see `leave`."""
        self._done.setdefault(job.model, []).append(job)

    def leave(self, row: Row) -> list[Job]:
        """A row of a running cohort has ended; returns the jobs to be answered, once it is the last one."""
        model = row.job.model
        self._running[model] -= 1
        return [] if self._running[model] else self._done.pop(model, [])

    def forget(self, model: ModelKey) -> None:
        """Drop an idle model."""
        for kept in (self._waiting, self._running, self._done):
            kept.pop(model, None)
