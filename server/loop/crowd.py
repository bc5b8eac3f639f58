"""Equal treatment under overload: while some requests find no room, the others leave it to them.

A device that is shared by N rows does a step of each of them in N rows' time. So a request with a deadline has a
*room*: how many rows there may be beside it. One that allows much time for its steps has more room than one that allows
little, and if each were taken that finds room, then under overload the first kind would fill the device up to its own
room, and the second would hardly ever be taken: long programs with patience would crowd out the short ones, of which
several could be answered in the same time. So as soon as more than a few requests are refused, the room of the tightest
of these binds everyone, and all are refused in the same proportion.

Only while more is asked for than the device can do. Else what is refused after a slow spell, for the others' sake,
would itself be the reason to go on refusing.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import NamedTuple

from sortedcontainers import SortedList

from ..errors import Overloaded
from ..types import Job
from .admission import DrainRate

MINORITY = 0.05
"""Share of the recent requests that may be refused, tightest first, before the others leave room for them."""

RECENT_SECONDS = 5.0
RECENT_REQUESTS = 256
"""What is recent: at most that long ago, and at most so many."""


class _Asked(NamedTuple):
    """A recent request: when it came, its room if it was refused, and the seconds of the device that it asked for."""

    when: float
    room: float | None
    seconds: float


class Crowd:
    """The rows that one model has in work for requests with deadlines, and how many there may be.

    Rows are network rows, as many as a row's first line takes. Requests without deadlines are neither counted nor
    refused: they wait behind the others.
    """

    def __init__(self) -> None:
        self._rows: Counter[int] = Counter()  # by priority
        self._recent: deque[_Asked] = deque()
        self._seconds = 0.0  # of the device, that the recent ones asked for
        self._refused: SortedList[float] = SortedList()

    def check(self, job: Job, now: float, drain: DrainRate) -> None:
        """Refuse a job with a deadline that would take the room of those that are refused. O(log of the recent).

        Rows of lower priority do not count: they are not in its way.

        Raises:
            Overloaded: with the time that all rows counted take to end.
        """
        if job.deadline is None:
            return
        rows = sum(rows for priority, rows in self._rows.items() if priority >= job.priority)
        bound = self._bound(now)
        if rows >= bound:
            message = f"{rows} rows with deadlines are in work, and more than {bound:.0f} leave others no room"
            raise Overloaded(message, drain.retry_seconds(rows))

    def note(self, now: float, room: float, seconds: float, *, refused: bool) -> None:
        """A request with so much room came, and was taken or refused.

        seconds: of the device's time that is this model's, that it takes in full batches; 0 where that is not known.
        """
        self._recent.append(_Asked(now, room if refused else None, seconds))
        self._seconds += seconds
        if refused:
            self._refused.add(room)
        self._forget(now)  # here, too: nobody asks while there is room for all

    def enter(self, job: Job) -> None:
        """Count a job's rows as in work."""
        self._count(job, len(job.rows))

    def leave(self, job: Job, rows: int) -> None:
        """Rows of a job have ended, by themselves or with it."""
        self._count(job, -rows)

    def _count(self, job: Job, rows: int) -> None:
        if job.deadline is not None:
            self._rows[job.priority] += rows * (2 if job.rows[0].program.lines[0].guided else 1)

    def _bound(self, now: float) -> float:
        """The least room that a request had that was refused lately, but for a minority; infinite where few were, or
        where all that was asked for could have been done."""
        self._forget(now)
        if self._recent and self._seconds < now - self._recent[0].when:
            return float("inf")
        minority = int(MINORITY * len(self._recent))
        return self._refused[minority] if len(self._refused) > minority else float("inf")

    def _forget(self, now: float) -> None:
        """Drop what is not recent."""
        recent = self._recent
        while recent and (len(recent) > RECENT_REQUESTS or recent[0].when < now - RECENT_SECONDS):
            asked = recent.popleft()
            self._seconds = self._seconds - asked.seconds if recent else 0.0  # rounding errors do not pile up
            if asked.room is not None:
                self._refused.remove(asked.room)
