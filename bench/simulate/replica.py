"""One simulated server: the real batcher, between a host that handles calls one at a time and a device that runs steps.

The order of things is that of `server.loop.engine`: complete, tell the callers, schedule, run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from server.config import Limits
from server.errors import STATUS, ServerError
from server.loop.batcher import Batcher
from server.types import Batch, Job, ModelKey

from .agenda import Agenda
from .costs import Costs, Group, StepTable
from .traffic import CompiledCall
from .work import WorkLeft

NEGLIGIBLE = 1e-6
"""Seconds of interference that are not worth an event of their own."""


class Ticket(Protocol):
    """A request on its way, as a replica sees it. deadline: on the simulation's clock, or None."""

    call: CompiledCall
    seed: int
    deadline: float | None

    def leave(self, reason: str) -> None:
        """The answer has left the server. reason: empty, or why there are no samples or scores."""


class Host:
    """A thread that does what it is given in the order in which it came."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """Of all work so far, what is still to be done included."""
        self._free_at = 0.0

    def book(self, now: float, seconds: float) -> float:
        """Add work that came now; returns when it will be done."""
        self.seconds += seconds
        self._free_at = max(self._free_at, now) + seconds
        return self._free_at

    def worked(self, now: float) -> float:
        """Seconds of work done so far."""
        return self.seconds - max(0.0, self._free_at - now)


class StepCosts:
    """The tables of all groups, looked up once for each group that runs."""

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        self._tables: dict[tuple[str, str, str], StepTable] = {}

    def of(self, batch: Batch) -> StepTable:
        """Raises CostError: there is none for such a batch."""
        key = (batch.model.name, batch.network, batch.kind)
        table = self._tables.get(key)
        if table is None:
            table = self._tables[key] = self._costs.table(Group(*key))
        return table


class Replica:
    """A server of a fleet.

    host: its thread of handlers. models: names of those that it was asked for.
    """

    def __init__(
        self,
        agenda: Agenda,
        costs: Costs,
        tables: StepCosts,
        limits: Limits,
        capacities: Mapping[ModelKey, int],
        random: Callable[[], float],
        *,
        on_batch: Callable[[Batch, float, float], None] = lambda batch, began, ended: None,
        work: WorkLeft | None = None,
    ) -> None:
        """capacities: its models and their slots. random: uniform in [0, 1).

        on_batch: told of each batch that has run, and when it began and ended. work: is kept up to date.
        """
        self.batcher = Batcher(limits, agenda.clock)
        for key, capacity in capacities.items():
            self.batcher.add_model(key, capacity)
        self.host = Host()
        self.models: set[str] = set()
        self._agenda = agenda
        self._costs = costs
        self._tables = tables
        self._random = random
        self._on_batch = on_batch
        self._work = work
        self._spell = int(random() * len(costs.spells))
        self._idle = True
        self._woken = False
        self._began = 0.0
        # What the device is at: when that would be done but for the host's work since, and what the host had done then.
        self._until = 0.0
        self._host_worked = 0.0

    @property
    def busy(self) -> bool:
        """Whether its device has work."""
        return not self.batcher.idle

    def receive(self, ticket: Ticket) -> None:
        """A request has reached the server."""
        agenda = self._agenda
        agenda.at(self.host.book(agenda.now, ticket.call.host.receive), self._submit, ticket)

    def _submit(self, ticket: Ticket) -> None:
        call, work = ticket.call, self._work
        self.models.add(call.model.name)

        def on_done(job: Job, error: ServerError | None) -> None:
            if work is not None:
                work.ended(job)
            if error is None:
                job.rows.clear()  # they hold the job, and the job them: now both can go
            self._answer(ticket, "" if error is None else f"late {STATUS[type(error)].name}")

        job = call.job(on_done, ticket.seed, ticket.deadline, self._agenda.now)
        try:
            self.batcher.submit(job)
        except ServerError as error:
            if work is not None:
                work.refused(call)
            job.rows.clear()
            self._answer(ticket, f"refused {STATUS[type(error)].name}")
            return
        if work is not None:
            work.submitted(job, call)
        if self._idle:
            self._idle, self._woken = False, True
            self._after(self._costs.between, self._schedule, None)

    def _answer(self, ticket: Ticket, reason: str) -> None:
        call = ticket.call
        seconds = call.host.answer + (0.0 if reason else call.host.row * call.host_rows)
        self._agenda.at(self.host.book(self._agenda.now, seconds), ticket.leave, reason)

    # -- the device -----------------------------------------------------------------------------

    def _schedule(self, _: None) -> None:
        while True:
            batch, ended = self.batcher.schedule()
            for job, error in ended:
                job.on_done(job, error)
            if batch is not None or not ended:
                break
        if batch is None:
            self._idle = True
            return
        seconds = self._tables.of(batch).draw(batch.network_rows, self._random) * self._slowness()
        if self._woken:
            seconds += self._costs.wake
            self._woken = False
        self._began = self._agenda.now
        self._after(seconds, self._complete, batch)

    def _slowness(self) -> float:
        """By what factor steps are longer now than on average."""
        spells = self._costs.spells
        return spells[(self._spell + int(self._agenda.now / self._costs.spell_seconds)) % len(spells)]

    def _complete(self, batch: Batch) -> None:
        now = self._agenda.now
        if self._work is not None:
            self._work.ran(batch)
        for job, error in self.batcher.complete(batch, now - self._began):
            job.on_done(job, error)
        self._on_batch(batch, self._began, now)
        self._after(self._costs.between, self._schedule, None)

    def _after(self, seconds: float, action: Callable[[Any], None], argument: Any) -> None:
        """Have the device do something for `seconds`, and longer by what the host does meanwhile; then `action`."""
        agenda, share = self._agenda, self._costs.interference
        if not share:
            agenda.at(agenda.now + seconds, action, argument)
            return
        now = agenda.now
        self._until = now + seconds
        self._host_worked = self.host.worked(now)
        # What the host has to do already is known to come in between; it may keep it busy for longer than this takes.
        backlog = self.host.seconds - self._host_worked
        known = seconds + share * backlog
        if known < backlog:
            known = min(backlog, seconds / (1.0 - share))
        agenda.at(now + known, self._go_on, (action, argument))

    def _go_on(self, what: tuple[Callable[[Any], None], Any]) -> None:
        agenda = self._agenda
        host = self.host.worked(agenda.now) - self._host_worked
        until = self._until + self._costs.interference * host
        if until > agenda.now + NEGLIGIBLE:
            agenda.at(until, self._go_on, what)
            return
        action, argument = what
        action(argument)
