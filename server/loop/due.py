"""When a row is due: what is due first runs first, and gets the next free slot."""

from __future__ import annotations

from ..types import Job

PATIENCE_SECONDS = 1.0
"""How long after joining its queue a row without a deadline is due."""

PRIORITY_SECONDS = 0.1
"""How much earlier one level of priority makes a row due."""

URGENCY_SECONDS = 5.0
"""The most by which priority and deadline together may make a row due before it joined its queue."""


def due(job: Job, now: float) -> float:
    """When a row of the job is due that joins a queue now.

    That is after `PATIENCE_SECONDS`, less its priority, or, where that is earlier, when its job must start to meet its
    deadline. So rows without deadlines take turns, and a row that arrives while a batch runs comes before the rows of
    that batch. Nothing starves: rows are due at the latest a bounded time after they joined, and at the earliest
    `URGENCY_SECONDS` before; who joins later than that cannot overtake.
    """
    patient = now + PATIENCE_SECONDS - job.priority * PRIORITY_SECONDS
    return max(min(patient, job.latest_start), now - URGENCY_SECONDS)
