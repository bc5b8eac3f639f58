"""A study: fleets of several sizes, policies and loads, one run each, all with the same arrivals at the same rate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from models.card import ModelCard
from server.config import Limits
from server.loop.sizes import RowSizes
from server.types import ModelKey

from ..mix import parse_mix
from ..schedule import Schedule, parse_arrivals
from .costs import Costs
from .fleet import Fleet, Run, simulate, work_of
from .goal import Goal, smallest
from .results import FleetResult, summarise
from .traffic import CompiledCall, compile_calls

MOST_REQUESTS = 5_000_000
MOST_REPLICAS = 10_000


class StudyError(ValueError):
    """A study that cannot be made; the message names the option."""


@dataclass(frozen=True)
class StudyPlan:
    """What is simulated. rates: requests a second, of the whole fleet. requests: measured ones of a run.

    arrivals: `poisson`, or `burst:SIZE`.
    warmup: share of a run's time before it, in which requests arrive and do not count. timeout: seconds until callers
    give up, or None. routers: proxies, each of which knows of its own calls alone.
    """

    mix: str
    rates: tuple[float, ...]
    replicas: tuple[int, ...]
    policies: tuple[str, ...]
    requests: int = 200_000
    warmup: float = 0.1
    timeout: float | None = None
    routers: int = 1
    seed: int = 0
    arrivals: str = "poisson"

    def __post_init__(self) -> None:
        if not self.rates or not all(0 < rate < math.inf for rate in self.rates):
            raise StudyError(f"rate: must be positive and finite, got {_listed(self.rates)}")
        if not self.replicas or not all(1 <= count <= MOST_REPLICAS for count in self.replicas):
            raise StudyError(f"replicas: must be within 1..{MOST_REPLICAS}, got {_listed(self.replicas)}")
        if not self.policies:
            raise StudyError("policies: must name at least one")
        parse_arrivals(self.arrivals, 1.0)
        if not 100 <= self.requests <= MOST_REQUESTS:
            raise StudyError(f"requests: must be within 100..{MOST_REQUESTS}, got {self.requests}")
        if not 0 <= self.warmup <= 10:
            raise StudyError(f"warmup: must be within 0..10 times the measured time, got {self.warmup:g}")
        if self.timeout is not None and not 0 < self.timeout < math.inf:
            raise StudyError(f"timeout: must be positive and finite, got {self.timeout:g}")
        if not 1 <= self.routers <= MOST_REPLICAS:
            raise StudyError(f"routers: must be within 1..{MOST_REPLICAS}, got {self.routers}")


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values) or "none"


@dataclass(frozen=True)
class Answer:
    """The smallest fleet of a policy that meets the goal at a rate; None where the largest allowed does not."""

    policy: str
    rate: float
    replicas: int | None


class Study:
    """Runs fleets of one plan, costs and models."""

    def __init__(
        self,
        plan: StudyPlan,
        cards: Mapping[str, ModelCard],
        costs: Costs,
        limits: Limits,
        progress: Callable[[str, int, int], None] = lambda what, arrived, total: None,
    ) -> None:
        """progress: told what is simulated, and how many requests have arrived of how many.

        Raises:
            MixError: the mix cannot be read or served. CostError: a step of it has no cost.
        """
        self.plan = plan
        self.calls: tuple[CompiledCall, ...] = compile_calls(parse_mix(plan.mix), cards, costs)
        self.results: list[FleetResult] = []
        used = {call.model.name for call in self.calls}
        self._capacities = {ModelKey(name, 1): RowSizes.of(cards[name]).slots(limits) for name in sorted(used)}
        self._costs, self._limits = costs, limits
        self._progress = progress
        self._schedules: dict[float, Schedule] = {}
        for policy in plan.policies:
            self._fleet(policy, 1)

    def run(self, policy: str, replicas: int, rate: float) -> Run:
        """Simulate one fleet; its result is added to `results`."""
        plan, fleet = self.plan, self._fleet(policy, replicas)
        schedule = self._schedule(rate)
        what = f"{policy}, {replicas} replicas, {rate:g} requests/s"
        started = time.perf_counter()
        run = simulate(
            *(fleet, self.calls, schedule),
            warmup=plan.warmup * plan.requests / rate,
            duration=plan.requests / rate,
            timeout=plan.timeout,
            seed=plan.seed,
            progress=lambda arrived: self._progress(what, arrived, len(schedule)),
        )
        self.results.append(summarise(fleet, rate, self.calls, run, time.perf_counter() - started))
        return run

    def compare(self) -> None:
        """Run every policy with every number of replicas at every rate."""
        for rate in self.plan.rates:
            for replicas in self.plan.replicas:
                for policy in self.plan.policies:
                    self.run(policy, replicas, rate)

    def size(self, goal: Goal, most: int) -> list[Answer]:
        """The smallest fleet of each policy that meets a goal, at every rate; at most so many replicas."""
        answers = []
        for rate in self.plan.rates:
            # With fewer not even full batches, one after the other, would keep up.
            least = min(most, max(1, math.ceil(rate * work_of(self._fleet(self.plan.policies[0], 1), self.calls))))
            for policy in self.plan.policies:
                found = smallest(lambda n, p=policy, r=rate: goal.met(self.calls, self.run(p, n, r)), least, most)  # type: ignore[misc]
                answers.append(Answer(policy, rate, found))
        return answers

    def _fleet(self, policy: str, replicas: int) -> Fleet:
        return Fleet(policy, replicas, self.plan.routers, self._limits, self._capacities, self._costs)

    def _schedule(self, rate: float) -> Schedule:
        schedule = self._schedules.get(rate)
        if schedule is None:
            seconds = (1.0 + self.plan.warmup) * self.plan.requests / rate
            law = parse_arrivals(self.plan.arrivals, rate)
            schedule = law.schedule(seconds, [call.weight for call in self.calls], self.plan.seed)
            self._schedules[rate] = schedule
        return schedule
