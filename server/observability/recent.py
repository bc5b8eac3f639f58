"""What happened in the last minute, for the status page: bounded memory, however much happens.

Written by the engine's thread and the event loop, read by the threads of the metrics port. Writers add to the
cell of the present moment; what is older than the ring is overwritten.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Generic, NamedTuple, TypeVar

from ..types import Batch, Row

STEPS_LEFT = (0, 1, 2, 4, 8)
"""Rows are told apart by the steps that they have left: 0, 1, 2-3, 4-7, 8 and more."""

COLUMN_SECONDS = 0.05
COLUMNS = 120
CALL_SECONDS = 60

MAX_ERRORS = 20  # of one status code: a flood of one does not push the others out
MAX_ERROR_CHARACTERS = 300
ANSWERED = ("OK", "CANCELLED")  # a caller that goes away is no error

# Latencies are counted in cells 5 % wide.
_CELLS_PER_E = 1 / math.log(1.05)
_SHORTEST_SECONDS = 1e-6

Cell = TypeVar("Cell")


class Moments(NamedTuple):
    """What the batches of one network did in one column of time.

    seconds: for which they ran. batches, rows: those that ended there, with their network rows.
    row_seconds: by class of `STEPS_LEFT`, how many of the batches' rows there were, times the seconds.
    """

    seconds: float
    batches: int
    rows: int
    row_seconds: tuple[float, ...]


class Calls(NamedTuple):
    """The calls of one method in the last minute, and the latency of those that ended well, in seconds."""

    ok: int
    failed: int
    p50: float
    p90: float
    p99: float


class CallError(NamedTuple):
    """A call that failed. when: seconds since the epoch."""

    when: float
    rpc: str
    code: str
    request_id: str
    text: str


def steps_left_class(row: Row) -> int:
    """The class of `STEPS_LEFT` of a row between two steps; 0 when it has left its slot."""
    return _class(_steps_left(row))


def _steps_left(row: Row) -> int:
    return len(row.program.lines) - row.line if row.slot >= 0 else 0


def _class(steps: int) -> int:
    return bisect_right(STEPS_LEFT, steps) - 1


class _Ring(Generic[Cell]):
    """Cells of a fixed length of time, the last `count` of them."""

    def __init__(self, count: int, new: Callable[[], Cell]) -> None:
        self._new = new
        self._numbers = [-1] * count
        self._cells = [new() for _ in range(count)]

    def at(self, number: int) -> Cell:
        """The cell of a number; numbers grow with time."""
        place = number % len(self._cells)
        if self._numbers[place] != number:
            self._numbers[place] = number
            self._cells[place] = self._new()
        return self._cells[place]

    def last(self, number: int) -> list[Cell | None]:
        """The cells up to a number, the oldest first; None where nothing happened."""
        count = len(self._cells)
        places = ((n, n % count) for n in range(number - count + 1, number + 1))
        return [self._cells[place] if self._numbers[place] == n else None for n, place in places]


class Recent:
    """The last seconds of batches, the last minute of calls, the last errors. Methods may be called from any thread."""

    def __init__(self, clock: Callable[[], float] = perf_counter, wall_clock: Callable[[], float] = time.time) -> None:
        """clock: the engine's, in seconds. wall_clock: seconds since the epoch."""
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._began = clock()
        self._batches: _Ring[dict[tuple[str, str], list[float]]] = _Ring(COLUMNS, dict)
        self._calls: _Ring[dict[str, Counter[int | None]]] = _Ring(CALL_SECONDS, dict)
        self._errors: dict[str, deque[CallError]] = {}

    # -- writing ----------------------------------------------------------------------------------

    def observe_step(self, batch: Batch, network_rows: int, seconds: float) -> None:
        """A batch that took so long has just been completed; called from the engine's thread."""
        ended = self._clock()
        began = ended - seconds
        last = int(ended / COLUMN_SECONDS)
        first = max(int(began / COLUMN_SECONDS), last - COLUMNS + 1)
        lane = (batch.model.name, batch.network)
        # Counted before they are classed: a batch has many rows and few different numbers of steps.
        left = Counter([_steps_left(row) for row in batch.rows])
        classes = [0] * len(STEPS_LEFT)
        for steps, rows in left.items():
            classes[_class(steps)] += rows
        with self._lock:
            for number in range(first, last + 1):
                start = number * COLUMN_SECONDS
                within = min(ended, start + COLUMN_SECONDS) - max(began, start)
                lanes = self._batches.at(number)
                cell = lanes.get(lane)
                if cell is None:
                    cell = lanes[lane] = [0.0] * (3 + len(STEPS_LEFT))
                cell[0] += within
                for index, rows in enumerate(classes, start=3):
                    cell[index] += rows * within
            ended_in = self._batches.at(last)[lane]
            ended_in[1] += batch.steps
            ended_in[2] += batch.steps * network_rows

    def observe_call(self, rpc: str, code: str, seconds: float, request_id: str, error: str) -> None:
        """A call ended. rpc, code: names that the server knows; the others may be the caller's."""
        key = math.floor(math.log(max(seconds, _SHORTEST_SECONDS)) * _CELLS_PER_E) if code == "OK" else None
        with self._lock:
            second = self._calls.at(int(self._clock()))
            counts = second.get(rpc)
            if counts is None:  # not `setdefault`: to make a Counter costs more than all the rest
                counts = second[rpc] = Counter()
            counts[key] += 1
            if code not in ANSWERED:
                text = error if len(error) <= MAX_ERROR_CHARACTERS else error[:MAX_ERROR_CHARACTERS] + "..."
                errors = self._errors.setdefault(code, deque(maxlen=MAX_ERRORS))
                errors.append(CallError(self._wall_clock(), rpc, code, request_id, text))

    # -- reading ----------------------------------------------------------------------------------

    def batches(self) -> list[dict[tuple[str, str], Moments]]:
        """By model and network what ran in each of the last `COLUMNS` columns, the oldest first."""
        with self._lock:
            cells = self._batches.last(int(self._clock() / COLUMN_SECONDS))
            copies = [{lane: tuple(values) for lane, values in (cell or {}).items()} for cell in cells]
        return [
            {lane: Moments(values[0], int(values[1]), int(values[2]), values[3:]) for lane, values in cell.items()}
            for cell in copies
        ]

    def calls(self) -> dict[str, Calls]:
        """By method, what the last minute brought."""
        with self._lock:
            cells = [dict(cell) for cell in self._calls.last(int(self._clock())) if cell is not None]
            counts = [(rpc, counter.copy()) for cell in cells for rpc, counter in cell.items()]
        totals: dict[str, Counter[int | None]] = {}
        for rpc, counter in counts:
            totals.setdefault(rpc, Counter()).update(counter)
        return {rpc: _summary(total) for rpc, total in sorted(totals.items())}

    def errors(self) -> list[CallError]:
        """The last errors of each status code, the newest first."""
        with self._lock:
            found = [error for errors in self._errors.values() for error in errors]
        return sorted(found, key=lambda error: error.when, reverse=True)

    def seconds(self, window: float) -> float:
        """How much of a window of time up to now the server has lived through."""
        return min(window, max(self._clock() - self._began, COLUMN_SECONDS))


def _summary(counts: Counter[int | None]) -> Calls:
    failed = counts.pop(None, 0)
    cells = sorted((cell, count) for cell, count in counts.items() if cell is not None)
    p50, p90, p99 = _percentiles(cells, (0.5, 0.9, 0.99))
    return Calls(counts.total(), failed, p50, p90, p99)


def _percentiles(cells: list[tuple[int, int]], shares: Iterable[float]) -> list[float]:
    """Seconds at the middle of the cell that each share of all falls in; 0 where there is nothing."""
    total = sum(count for _, count in cells)
    found = []
    for share in shares:
        seen, value = 0, 0.0
        for cell, count in cells:
            seen += count
            value = math.exp((cell + 0.5) / _CELLS_PER_E)
            if seen >= share * total:
                break
        found.append(value)
    return found
