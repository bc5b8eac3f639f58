"""The stages of a request, and the marks that end them.

A mark is a stage's name and the time at which it ended, on the clock that all processes of a machine share. A stage
takes the time since the mark before it, whichever that was: so the stages of a request add up to all of its time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

Marks = list[tuple[str, float]]


class Stage(NamedTuple):
    """ours: whether this project's code runs in it, and not gRPC, the engine or the kernel alone."""

    name: str
    meaning: str
    ours: bool


STAGES = (
    Stage("wire in", "from the client's call to the server's gRPC library and its event loop", False),
    Stage("parse", "protobuf, bytes to a message", False),
    Stage("dispatch", "the gRPC library makes a task and calls the handler", False),
    Stage("observe", "request id, client, gate", True),
    Stage("prepare", "checks, options, program, rows", True),
    Stage("admit", "admission, queue, a slot", True),
    Stage(
        "schedule",
        "a batch is made: on the engine's thread, which has to wake, unless the request is run at once",
        True,
    ),
    Stage("gather", "noise, states and inputs of the batch", True),
    Stage("network", "the engine's own time", False),
    Stage("update", "the fused update, states and scores", True),
    Stage("complete", "rows go on or leave, and the next batch is scheduled", True),
    Stage("wake loop", "the event loop finds the answer: it has to wake, unless the request was run at once", True),
    Stage("resume", "the call's task goes on", True),
    Stage("respond", "the response's message", True),
    Stage("account", "metrics, status page, log", True),
    Stage("wire out", "serialisation, the gRPC library, and the client's wake-up", False),
)


class Recorder:
    """Writes marks down, one list for each request. Of one request at a time: the client must wait for each answer."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._now: Marks = []
        self.requests: list[Marks] = []

    def begin(self) -> None:
        """A request has arrived."""
        self._now = [("wire in", self._clock())]

    def mark(self, stage: str) -> None:
        """A stage has ended; from any thread."""
        self._now.append((stage, self._clock()))

    @property
    def last(self) -> str:
        """The stage that ended last."""
        return self._now[-1][0]

    def end(self) -> None:
        """The last stage within the server has ended."""
        self.requests.append(self._now)

    def before(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """The function, with a mark as it is called."""

        @wraps(function)
        def marked(*arguments: Any, **keywords: Any) -> Any:
            self.mark(stage)
            return function(*arguments, **keywords)

        return marked

    def after(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """The function, with a mark when it has returned."""

        @wraps(function)
        def marked(*arguments: Any, **keywords: Any) -> Any:
            result = function(*arguments, **keywords)
            self.mark(stage)
            return result

        return marked

    def save(self, path: Path) -> None:
        """As JSON, for `load_marks`."""
        path.write_text(json.dumps(self.requests))


def load_marks(path: Path) -> list[Marks]:
    """What `Recorder.save` wrote."""
    return [[(str(stage), float(when)) for stage, when in request] for request in json.loads(path.read_text())]


def stage_seconds(began: float, marks: Sequence[tuple[str, float]], ended: float) -> dict[str, float]:
    """Seconds of each stage of a request, in the order of `STAGES`; one that comes several times is added up.

    began, ended: when the client called, and when it had the answer. Marks of two threads may be a little out of order.

    Raises:
        ValueError: the marks are not between the two, or one names no stage.
    """
    seconds = {stage.name: 0.0 for stage in STAGES}
    last = began
    for name, when in (*sorted(marks, key=lambda mark: mark[1]), ("wire out", ended)):
        if name not in seconds:
            raise ValueError(f"there is no stage {name!r}")
        if when < last:
            raise ValueError(f"stage {name!r} ended {last - when:.6f} s before the one that it follows")
        seconds[name] += when - last
        last = when
    return seconds
