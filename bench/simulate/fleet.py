"""A fleet under a load: calls arrive, routers send them to replicas, answers come back.

A run is the same again for the same arguments.
"""

from __future__ import annotations

import contextlib
import gc
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from server.config import Limits
from server.types import Batch, ModelKey

from ..schedule import Schedule
from .agenda import Agenda
from .costs import Costs, Group
from .replica import Replica, StepCosts
from .routers import POLICIES, Oracle, Router
from .traffic import CompiledCall
from .work import WorkLeft

OK = ""
LATE = "late DEADLINE_EXCEEDED"


@dataclass(frozen=True)
class Fleet:
    """What is simulated. replicas: servers, all with the same models. routers: proxies that know nothing of each other.

    capacities: the models of each server and their slots.
    """

    policy: str
    replicas: int
    routers: int
    limits: Limits
    capacities: Mapping[ModelKey, int]
    costs: Costs

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"policies: no policy {self.policy!r}; there are: {', '.join(POLICIES)}")
        for name in ("replicas", "routers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")


@dataclass
class Tally:
    """What the replicas did from `begin` to `end`. busy: device seconds of each. batches, rows: by network."""

    begin: float
    end: float
    busy: list[float]
    batches: Counter[Group] = field(default_factory=Counter)
    rows: Counter[Group] = field(default_factory=Counter)

    def batch(self, replica: int, batch: Batch, began: float, ended: float) -> None:
        """A batch has run; of one that runs over an edge the part inside counts."""
        inside = min(ended, self.end) - max(began, self.begin)
        if inside <= 0.0:
            return
        self.busy[replica] += inside
        group = Group(batch.model.name, batch.network, batch.kind)
        self.batches[group] += 1
        self.rows[group] += batch.network_rows


@dataclass(frozen=True)
class Run:
    """What became of every request of a schedule.

    latency: `(requests,)` seconds from the arrival to the answer, refused ones to the refusal. reason: `(requests,)`
    index into `reasons`, of which the first is that it was answered in time. models: of each replica, how many were
    asked of it. host: seconds of each host's work, over the whole run. events: of the simulation.
    """

    schedule: Schedule
    latency: NDArray[np.float64]
    reason: NDArray[np.int64]
    reasons: tuple[str, ...]
    tally: Tally
    models: tuple[int, ...]
    host: tuple[float, ...]
    seconds: float
    events: int


class _Ticket:
    """One request on its way."""

    __slots__ = ("_flight", "call", "deadline", "index", "luck", "reason", "replica", "router", "seed")

    def __init__(self, flight: _Flight, index: int, call: CompiledCall, deadline: float | None) -> None:
        self._flight = flight
        self.index = self.seed = index
        self.call = call
        self.deadline = deadline
        self.router: Router
        self.replica = 0
        self.luck = 0.0
        self.reason = OK

    def leave(self, reason: str) -> None:
        self.reason = reason
        flight = self._flight
        flight.agenda.at(flight.agenda.now + flight.way(self), flight.answered, self)


class _Flight:
    """One run in the making."""

    def __init__(
        self,
        fleet: Fleet,
        calls: Sequence[CompiledCall],
        schedule: Schedule,
        tally: Tally,
        timeout: float | None,
        seed: int,
    ) -> None:
        self.agenda = Agenda()
        self._calls = calls
        self._timeouts = [timeout if call.timeout is None else call.timeout for call in calls]
        # Sorted, so that who is lucky on an idle server's way is so on a busy one's.
        self._idle_ways = sorted(delay / 2.0 for delay in fleet.costs.delays)
        self._busy_ways = sorted(delay / 2.0 for delay in fleet.costs.busy_delays) or self._idle_ways
        self._rng = random.Random(seed)
        self.latency: list[float | None] = [None] * len(schedule)
        self.reason = [0] * len(schedule)
        self.reasons = {OK: 0}
        self.at = schedule.at.tolist()
        row_seconds = _row_seconds(fleet, calls)
        shares: dict[str, float] = {}
        for call in calls:
            share = call.weight * sum(row_seconds[group] * rows for group, rows in call.lines.items())
            shares[call.model.name] = shares.get(call.model.name, 0.0) + share
        self._routers = [POLICIES[fleet.policy](shares, fleet.replicas, self._rng) for _ in range(fleet.routers)]
        oracles = [router for router in self._routers if isinstance(router, Oracle)]
        tables = StepCosts(fleet.costs)
        self.replicas: list[Replica] = []
        self._work: list[WorkLeft] = []
        for index in range(fleet.replicas):
            work = WorkLeft(row_seconds, partial(_tell_all, oracles, index)) if oracles else None
            if work is not None:
                self._work.append(work)
            replica = Replica(
                *(self.agenda, fleet.costs, tables, fleet.limits, fleet.capacities, self._rng.random),
                on_batch=partial(tally.batch, index),
                work=work,
            )
            self.replicas.append(replica)

    def arrive(self, index: int, kind: int) -> None:
        """A request comes to a router, which sends it on at once."""
        agenda, rng = self.agenda, self._rng
        call = self._calls[kind]
        timeout = self._timeouts[kind]
        ticket = _Ticket(self, index, call, None if timeout is None else agenda.now + timeout)
        routers = self._routers
        ticket.router = routers[0] if len(routers) == 1 else routers[rng.randrange(len(routers))]
        ticket.replica = replica = ticket.router.pick(call)
        if self._work:
            self._work[replica].sent(call)
        ticket.luck = rng.random()
        agenda.at(agenda.now + self.way(ticket), self.replicas[replica].receive, ticket)

    def way(self, ticket: _Ticket) -> float:
        """Seconds to the ticket's replica, or back from it, as it is now."""
        ways = self._busy_ways if self.replicas[ticket.replica].busy else self._idle_ways
        return ways[int(ticket.luck * len(ways))]

    def answered(self, ticket: _Ticket) -> None:
        """An answer is back where the request came from."""
        ticket.router.answered(ticket.replica)
        index = ticket.index
        latency = self.agenda.now - self.at[index]
        reason = ticket.reason
        if reason == OK and ticket.deadline is not None and self.agenda.now > ticket.deadline:
            reason = LATE
        if self.latency[index] is not None:
            raise RuntimeError(f"request {index} was answered twice")
        self.latency[index] = latency
        self.reason[index] = self.reasons.setdefault(reason, len(self.reasons))


def simulate(
    fleet: Fleet,
    calls: Sequence[CompiledCall],
    schedule: Schedule,
    *,
    warmup: float = 0.0,
    duration: float,
    timeout: float | None = None,
    seed: int = 0,
    progress: Callable[[int], None] = lambda arrived: None,
) -> Run:
    """Let a schedule arrive and wait until every request has ended.

    warmup, duration: replicas' work counts from the first, in seconds, and for so long. timeout: seconds until callers
    give up, which servers know as the deadline; a call may have one of its own. progress: told now and then how many
    requests have arrived.

    Raises:
        CostError: a batch has no cost. RuntimeError: a request was answered twice, or never.
    """
    tally = Tally(warmup, warmup + duration, [0.0] * fleet.replicas)
    flight = _Flight(fleet, calls, schedule, tally, timeout, seed)
    agenda = flight.agenda
    with _little_garbage_collection():
        for index, (when, kind) in enumerate(zip(flight.at, schedule.kind.tolist(), strict=True)):
            while agenda.next_time < when:
                agenda.step()
            agenda.now = when
            flight.arrive(index, kind)
            if not index % 1000:
                progress(index)
        while agenda.next_time < float("inf"):
            agenda.step()
    progress(len(schedule))
    unanswered = flight.latency.count(None)
    if unanswered:
        raise RuntimeError(f"{unanswered} requests were never answered")
    return Run(
        schedule=schedule,
        latency=np.array(flight.latency, dtype=np.float64),
        reason=np.array(flight.reason, dtype=np.int64),
        reasons=tuple(flight.reasons),
        tally=tally,
        models=tuple(len(replica.models) for replica in flight.replicas),
        host=tuple(replica.host.seconds for replica in flight.replicas),
        seconds=agenda.now,
        events=agenda.events,
    )


def _row_seconds(fleet: Fleet, calls: Sequence[CompiledCall]) -> dict[Group, float]:
    """A row's share of a full batch, in seconds, for every step that the calls take."""
    full = fleet.limits.max_batch_rows
    return {group: fleet.costs.table(group).mean(full) / full for call in calls for group in call.lines}


def work_of(fleet: Fleet, calls: Sequence[CompiledCall]) -> float:
    """Device seconds that a request of the mix takes on average if all batches are full: the least that it can take."""
    row_seconds = _row_seconds(fleet, calls)
    weights = sum(call.weight for call in calls)
    return sum(c.weight / weights * sum(row_seconds[g] * rows for g, rows in c.lines.items()) for c in calls)


def _tell_all(oracles: Sequence[Oracle], replica: int, seconds: float) -> None:
    for oracle in oracles:
        oracle.has_left(replica, seconds)


@contextlib.contextmanager
def _little_garbage_collection() -> Iterator[None]:
    """Collect seldom: what a run drops is freed at once, but for the few jobs that end in flight."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
