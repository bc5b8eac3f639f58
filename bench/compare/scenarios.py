"""The questions of a comparison, each with its load. A scenario measures one server at a time, round by round."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.mix import Kind, parse_mix
from bench.peers import bare, diffusers_loop
from bench.peers.engine import Engine
from bench.peers.registry import FEWSTEP, REQUEST_LEVEL
from bench.percentiles import percentile

from .caller import Draw
from .loads import closed_loop, open_loop
from .plan import Plan
from .servers import Running

BARE, DIFFUSERS = "bare", "diffusers"
NATIVE = "fewstep-native"
SMALL, SCORER, LARGE = "digits-ddpm", "digits-vdrme", "ddpm-cifar10"
PAUSE = (0.005, 0.015)
"""Seconds between two requests on an idle server, drawn evenly: no clock ticks with it."""
Numbers = dict[str, float]


@dataclass(frozen=True, slots=True)
class Bench:
    """What scenarios measure with. engines: of the repository, in this process, for the loops without a server.

    repository: where the bundles are, NAME/VERSION.
    """

    plan: Plan
    servers: Sequence[Running]
    engines: Mapping[str, Engine]
    repository: Path
    threads: int

    def reference(self) -> Running:
        """The server whose capacity sets the rate of a load that all get: the request-level batcher on our own core."""
        by_name = {server.name: server for server in self.servers}
        order = [name for name in (REQUEST_LEVEL, "triton", FEWSTEP) if name in by_name]
        return by_name[order[0]] if order else self.servers[0]


class Scenario(ABC):
    """A question. settings: what was found before the rounds (rates, clients), by name, for the result."""

    name: str
    title: str
    settings: dict[str, float]

    def rounds(self, plan: Plan) -> int:
        return plan.rounds

    def prepare(self, bench: Bench) -> None:  # noqa: B027 - not every scenario has something to find out
        """Find out before the rounds what the load has to be; what was found goes into `settings`."""

    def loops(self, bench: Bench) -> Mapping[str, Callable[[], Numbers]]:
        """What is measured in this process, without a server, once a round; asked for after `prepare`."""
        return {}

    @abstractmethod
    def measure(self, bench: Bench, server: Running, turn: int) -> Mapping[str, Numbers]:
        """Measure one server, in the round number `turn`. Returns: numbers by the name of what was measured."""


@dataclass
class Idle(Scenario):
    """(a) One small request at a time on an idle server: how much later than the engine alone?

    paced: with pauses between the requests; busy: back to back. Seconds.
    """

    name: str = "idle"
    title: str = "one 1-step request at a time, digits"
    settings: dict[str, float] = field(default_factory=dict)
    draw: Draw = field(default_factory=lambda: Draw(SMALL, "ddim", 1, (7,)))

    def rounds(self, plan: Plan) -> int:
        return plan.idle_rounds

    def loops(self, bench: Bench) -> Mapping[str, Callable[[], Numbers]]:
        engine = bench.engines[SMALL]
        request = engine.sample_request(self.draw.sampler, self.draw.steps, self.draw.seeds)
        loops = {BARE: lambda: self._latencies(bench.plan, lambda: engine.run([request]))}
        run = diffusers_loop.sampler_of(_bundle(bench, SMALL), self.draw.steps, bench.threads)
        return {**loops, DIFFUSERS: lambda: self._latencies(bench.plan, lambda: run(1))}

    def measure(self, bench: Bench, server: Running, turn: int) -> Mapping[str, Numbers]:
        with server.turn():
            found = {server.name: self._through(bench.plan, server, None)}
            if server.name == FEWSTEP:
                found[NATIVE] = self._through(bench.plan, server, "native")
        return found

    def _through(self, plan: Plan, server: Running, protocol: str | None) -> Numbers:
        with server.caller(protocol) as caller:
            return self._latencies(plan, caller.sampling(self.draw))

    @staticmethod
    def _latencies(plan: Plan, call: Callable[[], object]) -> Numbers:
        for _ in range(plan.idle_requests // 4):
            call()
        pauses = random.Random(0)
        found: Numbers = {}
        for name, paced in (("paced", True), ("busy", False)):
            took = []
            for _ in range(plan.idle_requests):
                if paced:
                    time.sleep(pauses.uniform(*PAUSE))
                started = time.perf_counter()
                call()
                took.append(time.perf_counter() - started)
            found |= {f"{name}_p50": percentile(took, 50), f"{name}_p90": percentile(took, 90)}
        return found


@dataclass
class Saturation(Scenario):
    """(b, c) As many clients as it takes: how many samples a second, of what the loop without a server makes?

    clients: numbers to try for each server; the best one is kept. batches: for the loops.
    """

    name: str
    title: str
    model: str
    steps: int
    count: int
    clients: tuple[int, ...]
    batches: tuple[int, ...]
    large: bool = False
    settings: dict[str, float] = field(default_factory=dict)
    runners: dict[str, bare.Runner] = field(default_factory=dict)

    def prepare(self, bench: Bench) -> None:
        self.runners = {
            BARE: bare.sampler_of(bench.engines[self.model], "ddim", self.steps),
            DIFFUSERS: diffusers_loop.sampler_of(_bundle(bench, self.model), self.steps, bench.threads),
        }
        for server in bench.servers:
            tried = {clients: self._rate(bench, server, clients, bench.plan.trial) for clients in self.clients}
            self.settings[f"{server.name} clients"] = max(tried, key=lambda clients: tried[clients])
        for name, run in self.runners.items():
            rates = {rows: bare.throughput(run, rows, bench.plan.bare) for rows in self.batches}
            self.settings[f"{name} batch"] = max(rates, key=lambda rows: rates[rows])

    def loops(self, bench: Bench) -> Mapping[str, Callable[[], Numbers]]:
        seconds = self._seconds(bench.plan)

        def loop(name: str, run: bare.Runner) -> Callable[[], Numbers]:
            rows = int(self.settings[f"{name} batch"])
            return lambda: {"rows_per_second": bare.throughput(run, rows, seconds)}

        return {name: loop(name, run) for name, run in self.runners.items()}

    def measure(self, bench: Bench, server: Running, turn: int) -> Mapping[str, Numbers]:
        clients = int(self.settings[f"{server.name} clients"])
        return {server.name: {"rows_per_second": self._rate(bench, server, clients, self._seconds(bench.plan))}}

    def _seconds(self, plan: Plan) -> float:
        return plan.large if self.large else plan.saturation

    def _rate(self, bench: Bench, server: Running, clients: int, seconds: float) -> float:
        kinds = parse_mix(f"ddim:{self.steps}:count={self.count}:model={self.model}=1")
        with server.turn():
            load = closed_loop(server, kinds, clients, settle=bench.plan.settle, seconds=seconds)
        return load.rows_per_second()


@dataclass
class Mixed(Scenario):
    """(d, e, g) Calls of several lengths at one rate that all servers get: how late is each kind at the tail?

    mix: its first kind is the one that matters. load: the share of the reference server's capacity that is offered.
    Latencies in seconds from the scheduled arrival.
    """

    name: str
    title: str
    mix: str
    load: float = 0.6
    clients: int = 16
    settings: dict[str, float] = field(default_factory=dict)

    def prepare(self, bench: Bench) -> None:
        reference = bench.reference()
        with reference.turn():
            found = closed_loop(
                *(reference, self._kinds(), self.clients), settle=bench.plan.settle, seconds=2 * bench.plan.trial
            )
        self.settings["rate"] = self.load * found.achieved

    def measure(self, bench: Bench, server: Running, turn: int) -> Mapping[str, Numbers]:
        plan, rate = bench.plan, self.settings["rate"]
        with server.turn():
            load = open_loop(server, self._kinds(), rate, settle=plan.settle, seconds=plan.mixed, seed=turn)
        numbers = {"offered": load.offered, "achieved": load.achieved, "failed": load.failed}
        for index, kind in enumerate(self._kinds()):
            label = kind.name.partition(":model")[0]
            numbers |= {f"{label} p50": load.latency(index, 50), f"{label} p99": load.latency(index, 99)}
        return {server.name: numbers}

    def _kinds(self) -> tuple[Kind, ...]:
        return parse_mix(self.mix)


@dataclass
class Overload(Scenario):
    """(f) Callers with half a second of patience: how much is answered in time, of what it can do at best?

    Beside it, at the highest load, the steps that the answered samples took, and the share answered of the kind that
    fares worst: who answers short requests alone answers more samples.
    """

    name: str = "overload"
    title: str = "1, 4 and 8 steps, 8 samples each, digits, 0.5 s of patience"
    loads: tuple[float, ...] = (0.8, 1.0, 3.0)
    clients: int = 16
    settings: dict[str, float] = field(default_factory=dict)
    mix: str = ",".join(f"ddim:{steps}:count=8:model={SMALL}=1" for steps in (1, 4, 8))

    def rounds(self, plan: Plan) -> int:
        return plan.overload_rounds

    def prepare(self, bench: Bench) -> None:
        for server in bench.servers:
            with server.turn():
                found = closed_loop(
                    *(server, parse_mix(self.mix), self.clients), settle=bench.plan.settle, seconds=bench.plan.trial
                )
            self.settings[f"{server.name} capacity"] = found.achieved

    def measure(self, bench: Bench, server: Running, turn: int) -> Mapping[str, Numbers]:
        plan, capacity = bench.plan, self.settings[f"{server.name} capacity"]
        numbers = {}
        for share in self.loads:
            with server.turn():
                load = open_loop(
                    *(server, parse_mix(self.mix), share * capacity),
                    settle=plan.settle,
                    seconds=plan.overload,
                    patience=plan.patience,
                    seed=turn,
                )
                server.wake()  # behind all that nobody waits for any more
            numbers[f"goodput at {share:g}"] = load.rows_per_second(within=plan.patience)
        at_most = max(numbers.values())
        highest = f"{self.loads[-1]:g}"
        numbers[f"steps at {highest}"] = load.steps_per_second(within=plan.patience)
        numbers[f"worst kind at {highest}"] = load.least_answered(within=plan.patience)
        numbers["share"] = numbers[f"goodput at {self.loads[-1]:g}"] / at_most if at_most else 0.0
        return {server.name: numbers}


def all_scenarios() -> dict[str, Scenario]:
    """The scenarios by name, in the order of the questions."""
    scenarios: tuple[Scenario, ...] = (
        Idle(),
        Saturation("small", "1 sample of 4 steps a request, digits", SMALL, 4, 1, (16, 64), (16, 32, 64, 128)),
        Saturation("bulk", "16 samples of 4 steps a request, digits", SMALL, 4, 16, (8, 16), (16, 32, 64, 128)),
        # Few clients and one step: a batch is then a small part of the measured seconds, and the count of them no step.
        Saturation("large", "1 sample of 1 step a request, 35.7M U-Net", LARGE, 1, 1, (4,), (1, 2, 4), large=True),
        Mixed(
            "interactive",
            "1-step requests over a background of 8-step ones, digits",
            f"ddim:1:model={SMALL}=2,ddim:8:count=8:model={SMALL}=1",
        ),
        Mixed(
            "scoring",
            "scores of 16 images beside 8-step samples, digits",
            f"score:images=16:model={SCORER}=2,ddim:8:count=8:model={SMALL}=1",
        ),
        Overload(),
        Mixed(
            "langevin",
            "4-step samples beside Langevin chains of 50 steps, digits",
            f"vdrme:4:model={SCORER}=4,langevin:50:count=2:model={SCORER}=1",
        ),
    )
    return {scenario.name: scenario for scenario in scenarios}


def _bundle(bench: Bench, model: str) -> Path:
    """The newest version of a model."""
    return max((bench.repository / model).iterdir(), key=lambda path: int(path.name))
