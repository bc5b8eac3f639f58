"""Predicted times: what steps cost, learnt from the batches that ran, and what follows for batches and requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil

from ..config import Limits
from ..types import Job, ModelKey
from .cost import StepCost

Network = tuple[ModelKey, str]

Lines = Mapping[tuple[str, str], int]
"""How many lines of a program run each network with each kind of update."""

STALE_SECONDS = 5.0
"""After this long, and twice the step itself, without a batch of a network, its cost refuses nobody any more.

Else one slow spell, e.g. while a model is loaded, could refuse every request with a deadline for good: no batch would
run that could show that the spell is over.
"""

ENOUGH_BATCHES = 3
"""The most room that a request is said to have: more full batches at work keep the device no busier, and all wait.

With more, rows of long programs that have been at work for long come before new ones of short programs, which are late.
"""


FIXED_SHARE = 0.5
"""A batch is not cut to the step budget where its fixed cost would be more than this share of it: on a device whose
steps are long whatever their rows, short ones would cost most of the throughput."""


FEW_STEPS = 8
"""So many steps each of the rows that wait is taken to have before it, when a batch is widened for their sake: about as
many as requests of this server have. Longer programs count no more, as all others would wait for their wide batches."""


class Prediction:
    """What the steps of each network of one device cost, on an injected clock. All times are in seconds.

    Times are for a device that does nothing else; who shares it multiplies them by the number of those that do.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        self._costs: dict[Network, StepCost] = {}
        self._batch_rows: dict[Network, int] = {}

    def record(self, network: Network, network_rows: int, seconds: float) -> None:
        """A batch of a network took `seconds`, and has just ended."""
        cost = self._costs.setdefault(network, StepCost())
        cost.record(network_rows, seconds)
        cost.recorded_at = self._clock()
        rows = max(1, cost.rows_within(self._limits.step_seconds), cost.rows_enough(FIXED_SHARE))
        if rows == cost.only_rows:
            rows += 1  # else batches that are long for their fixed cost would stay small, and nobody would ever know
        self._batch_rows[network] = min(self._limits.max_batch_rows, rows)

    def forget(self, model: ModelKey) -> None:
        """Drop what was learnt of a model."""
        for network in [network for network in self._costs if network[0] == model]:
            del self._costs[network], self._batch_rows[network]

    def costs_of(self, model: ModelKey) -> dict[str, tuple[float, float]]:
        """(fixed, per_row) of a step, for each network of a model that has run."""
        return {name: cost.fit for (key, name), cost in self._costs.items() if key == model}

    def batch_rows(self, network: Network, waiting: int = 0) -> int:
        """The most network rows that a batch may have: those predicted to fit in the step budget, or that it takes to
        be worth its fixed cost, or by which those that wait are done soonest; at least one.

        waiting: network rows that are to be taken one step further.
        """
        most = self._limits.max_batch_rows
        rows = self._batch_rows.get(network, most)
        if rows < min(waiting, most):
            rows = max(rows, min(most, self._costs[network].rows_quickest(FEW_STEPS * waiting)))
        return rows

    def round_seconds(self, network: Network, network_rows: int) -> float:
        """Time for all of `network_rows` to take one step of a network; 0 where none was measured lately."""
        cost = self._costs.get(network)
        if cost is None or not network_rows:
            return 0.0
        batches = ceil(network_rows / self.batch_rows(network, network_rows))
        seconds = batches * cost.seconds(network_rows / batches)
        return seconds if self._clock() - cost.recorded_at <= STALE_SECONDS + 2.0 * seconds else 0.0

    def usual_cost(self, model: ModelKey, lines: Lines) -> tuple[float, float] | None:
        """(fixed, per network row) of a program by itself, as its networks were last seen, however long ago.

        None where one never ran.
        """
        fits = [(self._costs.get((model, network)), count) for (network, _), count in lines.items()]
        if any(cost is None for cost, _ in fits):
            return None
        costs = [(cost.fit, count) for cost, count in fits if cost is not None]
        return sum(count * fixed for (fixed, _), count in costs), sum(count * each for (_, each), count in costs)

    def run_seconds(self, model: ModelKey, lines: Lines, network_rows: int) -> float:
        """Time for a program whose rows have slots: one round a line, of `network_rows` with its own among them."""
        return sum(n * self.round_seconds((model, network), network_rows) for (network, _), n in lines.items())

    def row_seconds(self, job: Job, most: int) -> float:
        """See `server.types.Job`; most: rows like the job's that there are slots for."""
        row = job.rows[0]
        return self.run_seconds(job.model, row.program.line_counts, most * row.network_rows) / most

    def room(self, job: Job, lines: Lines, full: int, seconds: float) -> float:
        """Network rows that may go round beside a job for it to be done in `seconds`; 0 or less where none may.

        full: network rows of a full batch. The one that runs when the job arrives is waited for; from then on a line
        takes as many full batches as there are to a round, `ENOUGH_BATCHES` at most. Infinite where nothing is known.
        """
        run = self.run_seconds(job.model, lines, full)
        if not run:
            return float("inf")
        row = job.rows[0]
        waited = self.round_seconds((job.model, row.current.network), full)
        return min(int((seconds - waited) / run), ENOUGH_BATCHES) * full - len(job.rows) * row.network_rows
