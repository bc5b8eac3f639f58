"""The two loads that servers are put under, and what is counted of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.mix import Kind
from bench.percentiles import percentile
from bench.schedule import Poisson
from bench.sender import Outcome, send, send_in_turns

from .servers import Running

MESSAGES = 512
"""Different requests of a closed loop, sent in turn."""
TIMEOUT = 20.0
MAX_OPEN = 8192


@dataclass(frozen=True, slots=True)
class Load:
    """What became of a load within its measured seconds.

    kinds: what the outcomes' `kind` counts. offered: requests a second that were due. outcomes: of requests due in the
    measured time. done: of requests answered in it, whenever they were due.
    """

    kinds: tuple[Kind, ...]
    seconds: float
    offered: float
    outcomes: tuple[Outcome, ...]
    done: tuple[Outcome, ...]

    def rows_per_second(self, within: float = TIMEOUT) -> float:
        """Samples and scores answered a second. within: only those that took at most so long."""
        rows = sum(self.kinds[o.kind].rows for o in self.done if o.ok and o.latency <= within)
        return rows / self.seconds

    def steps_per_second(self, within: float = TIMEOUT) -> float:
        """Steps of the samples answered a second, in a load of samples alone: what the device has done of use."""
        kinds = self.kinds
        steps = sum(
            kinds[o.kind].rows * int(kinds[o.kind].options["steps"]) for o in self.done if o.ok and o.latency <= within
        )
        return steps / self.seconds

    def least_answered(self, within: float = TIMEOUT) -> float:
        """The share of its requests that were answered, of the kind of which it is the smallest."""
        due = Counter(outcome.kind for outcome in self.outcomes)
        answered = Counter(outcome.kind for outcome in self.outcomes if outcome.ok and outcome.latency <= within)
        return min((answered[kind] / count for kind, count in due.items()), default=0.0)

    @property
    def achieved(self) -> float:
        """Requests answered a second."""
        return sum(outcome.ok for outcome in self.done) / self.seconds

    @property
    def failed(self) -> float:
        """The share of the requests that were not answered."""
        return sum(not o.ok for o in self.outcomes) / max(1, len(self.outcomes))

    def latency(self, kind: int, share: float) -> float:
        """A percentile of the latencies of one kind, in seconds; an unanswered request counts as taking for ever."""
        took = [o.latency if o.ok else float("inf") for o in self.outcomes if o.kind == kind]
        return percentile(took, share)


def closed_loop(
    server: Running, kinds: Sequence[Kind], clients: int, *, settle: float, seconds: float, seed: int = 0
) -> Load:
    """Some clients that each ask again when they have their answer."""
    generator = np.random.Generator(np.random.PCG64(seed))
    weights = np.array([kind.weight for kind in kinds])
    drawn = generator.choice(len(kinds), size=MESSAGES, p=weights / weights.sum()).tolist()
    seeds = generator.integers(2**53, size=MESSAGES).tolist()

    async def run() -> Load:
        async with server.target() as target:
            ready = await target.prepare(server.kinds(kinds))
            messages = [target.message(ready[k], s) for k, s in zip(drawn, seeds, strict=True)]
            outcomes = await send_in_turns(
                *(target, messages, drawn),
                clients=clients,
                think=0.0,
                seconds=settle + seconds,
                timeouts=[TIMEOUT] * len(ready),
            )
            return _load(ready, outcomes, settle, seconds)

    return asyncio.run(run())


def open_loop(
    server: Running,
    kinds: Sequence[Kind],
    rate: float,
    *,
    settle: float,
    seconds: float,
    patience: float | None = None,
    seed: int = 0,
) -> Load:
    """Poisson arrivals, the same for every server. rate: requests a second. patience: of the callers, in seconds."""
    schedule = Poisson(rate).schedule(settle + seconds, [kind.weight for kind in kinds], seed)

    async def run() -> Load:
        async with server.target() as target:
            ready = await target.prepare(server.kinds(kinds, patience))
            each = zip(schedule.kind.tolist(), schedule.seed.tolist(), strict=True)
            messages = [target.message(ready[k], s) for k, s in each]
            timeouts = [patience or TIMEOUT] * len(ready)
            outcomes = await send(target, messages, schedule, timeouts=timeouts, max_open=MAX_OPEN)
            return _load(ready, outcomes, settle, seconds)

    return asyncio.run(run())


def _load(kinds: tuple[Kind, ...], outcomes: Sequence[Outcome], settle: float, seconds: float) -> Load:
    due = tuple(o for o in outcomes if settle <= o.scheduled < settle + seconds)
    done = tuple(o for o in outcomes if settle <= o.scheduled + o.latency < settle + seconds)
    return Load(kinds, seconds, len(due) / seconds, due, done)
