"""A simulated server on a clock of its own: the real scheduler, a device whose steps cost what the test says."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from functools import cache
from typing import NamedTuple

from bench.simulate.agenda import Agenda
from bench.simulate.costs import Costs, Group, HostCost, StepCost
from bench.simulate.replica import Replica, StepCosts
from bench.simulate.traffic import CompiledCall
from server.config import Limits
from server.types import Batch
from tests.server.world import MODEL, program


class Kind(NamedTuple):
    """Requests of a mix: allowed is the time until their deadline, in full batches; weight, how many of them come."""

    steps: int
    allowed: float | None
    weight: float = 1.0
    priority: int = 0
    network: str = "denoiser"


class Device(NamedTuple):
    """Seconds of a step, fixed and for each row, and the rows of a full batch."""

    fixed: float
    per_row: float
    full_rows: int

    @property
    def full_seconds(self) -> float:
        """Of a full batch."""
        return self.fixed + self.per_row * self.full_rows

    def costs(self) -> Costs:
        """The same for every network."""
        seconds = ((self.fixed + self.per_row,), (self.full_seconds,))
        kinds = (("denoiser", "ensemble"), ("energy", "score"))
        return Costs(tuple(StepCost(MODEL.name, *kind, (1, self.full_rows), seconds) for kind in kinds))


class _Ticket:
    """One request of a kind, which counts where it is answered in time."""

    def __init__(self, simulation: Simulation, kind: Kind, deadline: float | None) -> None:
        self.call = _call(kind)
        self.seed = 0
        self.deadline = deadline
        self._simulation, self._kind, self._came = simulation, kind, simulation.now
        self._ended = False

    def leave(self, reason: str) -> None:
        assert not self._ended, "a request ended twice"
        self._ended = True
        if not reason and (self.deadline is None or self._simulation.now <= self.deadline):
            self._simulation.met[self._kind] += 1
            self._simulation.seconds[self._kind].append(self._simulation.now - self._came)


class Simulation:
    """A simulated server of `bench.simulate`, whose host takes nothing.

    Requests arrive by a Poisson process at `load` times what full batches can take. What is answered in time is counted
    as long as requests arrive: what is left in the queue then, more of it the higher the load, is not.
    """

    def __init__(self, device: Device, capacity: int = 64, seed: int = 0, *, step_seconds: float = 1e9) -> None:
        self.agenda, costs = Agenda(), device.costs()
        limits = Limits(step_seconds=step_seconds, max_batch_rows=device.full_rows, max_waiting_rows=512)
        self.rng = random.Random(seed)
        self.device = device
        self.replica = Replica(
            *(self.agenda, costs, StepCosts(costs), limits, {MODEL: capacity}, self.rng.random),
            on_batch=self._ran,
        )
        self.batcher = self.replica.batcher
        self.ran = 0
        self.offered: Counter[Kind] = Counter()
        self.met: Counter[Kind] = Counter()
        self.seconds: defaultdict[Kind, list[float]] = defaultdict(list)
        """What the requests of each kind took that were answered in time."""

    @property
    def now(self) -> float:
        return self.agenda.now

    def forget(self) -> None:
        """Count anew."""
        self.offered.clear()
        self.met.clear()
        self.seconds.clear()
        self.ran = 0

    def run(self, load: float, kinds: tuple[Kind, ...], seconds: float = 3.0) -> Simulation:
        """`seconds` of requests."""
        weights = [kind.weight for kind in kinds]
        steps = sum(kind.steps * kind.weight for kind in kinds) / sum(weights)
        rate = load * self.device.full_rows / self.device.full_seconds / steps
        end = now = self.now
        end += seconds
        while (now := now + self.rng.expovariate(rate)) < end:
            self.at(now, self.rng.choices(kinds, weights)[0])
        return self.until(end)

    def at(self, when: float, kind: Kind) -> None:
        """Have a request arrive."""
        self.agenda.at(when, self._arrive, kind)

    def until(self, end: float) -> Simulation:
        """Let the requests arrive and the batches run."""
        while self.agenda.next_time <= end:
            self.agenda.step()
        self.agenda.now = end
        return self

    def _arrive(self, kind: Kind) -> None:
        self.offered[kind] += 1
        deadline = None if kind.allowed is None else self.now + self.device.full_seconds * kind.allowed
        self.replica.receive(_Ticket(self, kind, deadline))

    def _ran(self, batch: Batch, began: float, ended: float) -> None:
        self.ran += len(batch.rows)

    @property
    def good(self) -> int:
        """Requests answered in time."""
        return self.met.total()

    @property
    def good_steps(self) -> int:
        return sum(kind.steps * met for kind, met in self.met.items())

    def share(self, kind: Kind) -> float:
        """Which part of the requests of a kind was answered in time."""
        return self.met[kind] / self.offered[kind]


@cache
def _call(kind: Kind) -> CompiledCall:
    update = "score" if kind.network == "energy" else "ensemble"
    compiled = program(kind.steps, network=kind.network, kind=update)
    lines = {Group(MODEL.name, kind.network, update): kind.steps}
    return CompiledCall("", kind.weight, MODEL, (compiled,), 8, kind.priority, HostCost(), 1, lines)
