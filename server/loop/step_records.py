"""The steps of calls that are traced, written down by the engine as batches are completed."""

from __future__ import annotations

from collections.abc import Sequence

from ..types import Batch, Row, StepRecord

MAX_STEP_RECORDS = 500
"""Steps of one call that are traced."""


def record_step(batch: Batch, lines: Sequence[int], started: float, seconds: float) -> None:
    """Write the batch down for each traced call that has rows in it. lines: which of their lines the rows took."""
    traced: dict[int, tuple[list[StepRecord], list[tuple[Row, int]]]] = {}
    for row, line in zip(batch.rows, lines, strict=True):
        records = row.job.trace
        if records is not None and len(records) < MAX_STEP_RECORDS:
            traced.setdefault(id(records), (records, []))[1].append((row, line))
    for records, members in traced.values():
        own = sum([2 if row.program.lines[line].guided else 1 for row, line in members])
        taken = [line for _, line in members]
        first, last = min(taken) + 1, max(taken) + batch.steps
        records.append(StepRecord(batch.network, batch.kind, started, seconds, own, batch.network_rows, first, last))
