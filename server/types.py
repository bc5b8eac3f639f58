"""What passes between the API and the loop: jobs and their rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from models.program import INFINITY, Line, Program

from .errors import ServerError


class ModelKey(NamedTuple):
    """A loaded model: name and version, and a number of its own for each time that it was loaded."""

    name: str
    version: int
    generation: int = 0


@dataclass(slots=True, eq=False)
class Row:
    """One sample in flight. `slot` is its place in the model's state pools while it has one, and `kept` the places of
    the predictions that its program keeps (`Program.kept_predictions`) in a pool of their own.

    seed, sample: key the row's noise. label: None where the model takes none.
    image: the caller's image, `(elements,)` float32, where the program starts from it.
    state, scores (of its scoring lines), energy and gradient_norm (of its last line with a gradient), preview, failure:
    filled in by the runner as the row's program goes on.
    """

    job: Job
    seed: int
    sample: int
    program: Program
    label: int | None = None
    image: Any = None
    line: int = 0
    slot: int = -1
    kept: list[int] = field(default_factory=list)
    state: Any = None
    scores: list[float] = field(default_factory=list)
    energy: float | None = None
    gradient_norm: float | None = None
    preview: Any = None
    failure: ServerError | None = None

    @property
    def current(self) -> Line:
        return self.program.lines[self.line]

    @property
    def network_rows(self) -> int:
        """Rows of the network's batch that this row takes: two under guidance."""
        return 2 if self.current.guided else 1

    @property
    def alike(self) -> int:
        """How many lines from the current one on could be taken together (`Program.alike`)."""
        return self.program.alike[self.line]

    @property
    def last(self) -> bool:
        """Whether the current line is the last one."""
        return self.line + 1 == len(self.program.lines)


class StepRecord(NamedTuple):
    """One batch that rows of a traced call were in. started: the engine's clock; seconds: for which it ran.

    rows: network rows of the call, of the batch's `batch_rows`. first_step, last_step: the lowest and the highest
    step, counted from 1, that these rows took.
    """

    network: str
    kind: str
    started: float
    seconds: float
    rows: int
    batch_rows: int
    first_step: int
    last_step: int


@dataclass(slots=True, eq=False)
class Job:
    """One request in the loop. All times are the injected clock's, in seconds.

    on_done is called once, from the engine's thread: with None, or with what went wrong. It is not
    called for a job that its caller cancelled.
    on_preview, where given, is called with row 0 and the line (from 0) after each of its steps; `preview` is None where
    a step left the sample alone.
    trace: where the engine writes the steps of a call that is traced.
    row_seconds: of the device that a row of it is predicted to take while the model's slots are taken by rows like it.
    device, work: which of several devices it runs on, and the seconds that it is predicted to take there. Where its
    rows are shared out, each device has a job with its part of them instead (`server.loop.split`).
    """

    model: ModelKey
    on_done: Callable[[Job, ServerError | None], None]
    on_preview: Callable[[Row, int], None] | None = None
    priority: int = 0
    deadline: float | None = None
    latest_start: float = INFINITY
    rows: list[Row] = field(default_factory=list)
    arrived: float = 0.0
    started: float | None = None
    compute_seconds: float = 0.0
    network_seconds: float = 0.0
    batches: int = 0
    batch_rows: int = 0
    admitted: int = 0
    remaining: int = 0
    ended: bool = False
    order: int = 0
    row_bytes: int = 0
    row_seconds: float = 0.0
    entry: tuple[float, int, Job] | None = None
    trace: list[StepRecord] | None = None
    device: int = 0
    work: float = 0.0

    @property
    def waiting(self) -> int:
        """Rows that have not been given a slot yet."""
        return len(self.rows) - self.admitted


@dataclass(slots=True, eq=False)
class Batch:
    """Rows that run together: one network, one kind of update.

    network_rows: of the lines that the rows are at when the batch is made; they go on after it.
    limit: the most network rows that it might have had.
    steps: how many lines each row takes, one after the other; all have the same network, kind and network rows.
    padding: network rows that belong to nobody, told by the runner.
    staying: the rows that do not go on to a further line; None before the batcher has been told that they may.
    failed: the rows that ended their jobs, or would have, once the batch is completed.
    """

    model: ModelKey
    network: str
    kind: str
    rows: list[Row]
    network_rows: int
    limit: int = 0
    steps: int = 1
    padding: int = 0
    staying: list[Row] | None = None
    failed: list[Row] = field(default_factory=list)

    @classmethod
    def of(cls, model: ModelKey, network: str, kind: str, rows: list[Row]) -> Batch:
        return cls(model, network, kind, rows, sum([row.network_rows for row in rows]))
