"""Measures the costs of a real server: by probes of one client alone, and of several at once.

One client alone sees an idle server: what steps of so many rows take, what comes between them, and how long a request
travels. Several at once see by how much the host's work holds the device up (`Costs.interference`).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.bundle import ModelCard

from ..mix import Call, Kind, resolve
from .costs import Costs, Group, HostCost, StepCost, StepTable
from .models import summaries
from .probe import Probes, probe
from .traffic import compile_call

CLIENTS = (8, 16)
"""Clients of the probes that are to keep the device busy."""

LONGER = 8
"""Steps of the longer program by which a sampler is probed, or what comes nearest to it."""

ROUND = 7  # decimals of a second
MOST_SAMPLES = 200


@dataclass(frozen=True)
class MeasurePlan:
    """How to measure. rows: batch sizes, increasing. seconds: of each probe."""

    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    seconds: float = 0.5

    def __post_init__(self) -> None:
        if self.rows[:1] != (1,) or 2 not in self.rows or list(self.rows) != sorted(set(self.rows)):
            raise ValueError(f"probe_rows: must be whole numbers, increasing, with 1 and 2, got {self.rows}")
        if not 0 < self.seconds <= 60:
            raise ValueError(f"probe_seconds: must be within (0, 60], got {self.seconds:g}")


@dataclass(frozen=True)
class _Probed:
    """One sort of request at one size. lines: steps of a row, by group."""

    kind: Kind
    rows: int
    lines: Mapping[Group, int]
    probes: Probes

    @property
    def steps(self) -> int:
        return sum(self.lines.values())

    @property
    def compute(self) -> float:
        return statistics.median(request.compute for request in self.probes.requests)

    @property
    def host(self) -> float:
        """CPU seconds of the handlers' thread for one request."""
        return self.probes.host / len(self.probes.requests)


class Meter:
    """Measures one running server; what it takes counts together, however often it is done."""

    def __init__(
        self, address: str, pid: int, kinds: Sequence[Kind], cards: Mapping[str, ModelCard], plan: MeasurePlan
    ) -> None:
        """pid: of the server. kinds: of a mix; their counts and priorities do not matter.

        Raises:
            MixError: no model serves a kind.
        """
        self._address, self._pid = address, pid
        self._cards, self._plan = cards, plan
        kinds = _probe_kinds(kinds, cards)
        self._sorts = [(kind, rows) for kind in kinds for rows in plan.rows if rows >= _width(kind)]
        self._alone: list[_Probed] = []
        self._crowds: list[_Probed] = []

    def measure(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Send all probes once. progress: probes done, of how many.

        Raises:
            OSError: the system does not tell a thread's CPU time.
        """
        total = len(self._sorts) + len(CLIENTS)
        for index, (kind, rows) in enumerate(self._sorts):
            self._alone.append(self._probe(kind, rows, 1, self._plan.seconds))
            progress(index + 1, total)
        shortest = min(self._of_one_row(), key=lambda found: found.compute).kind
        for index, clients in enumerate(CLIENTS):
            self._crowds.append(self._probe(shortest, _width(shortest), clients, 4 * self._plan.seconds))
            progress(len(self._sorts) + index + 1, total)

    def costs(self) -> Costs:
        """What follows from all probes so far."""
        alone, smallest = self._alone, self._of_one_row()
        wake, means = _steps_and_wake(alone)
        steps = _step_costs(alone, wake, means)
        between = _between(smallest)
        sample, score = _host_costs(alone, self._crowds)
        delays = []
        for found in smallest:
            host = score if found.kind.call is Call.SCORE else sample
            known = host.receive + host.answer + host.row + between * found.steps
            delays += [max(0.0, r.latency - r.compute - known) for r in found.probes.requests]
        tables = {step.group: StepTable(step) for step in steps}
        held_up = statistics.median(_interference(crowd, tables, between) for crowd in self._crowds)
        return Costs(
            steps=steps,
            sample=sample,
            score=score,
            between=round(between, ROUND),
            wake=round(wake, ROUND),
            delays=_some(delays),
            interference=round(held_up, 3),
        )

    def _of_one_row(self) -> list[_Probed]:
        """The probes of one sample or image."""
        return [found for found in self._alone if found.rows == _width(found.kind)]

    def _probe(self, kind: Kind, rows: int, clients: int, seconds: float) -> _Probed:
        call = compile_call(kind, self._cards, None)
        lines = {group: count // _width(kind) for group, count in call.lines.items()}
        option = "count" if kind.call is Call.SAMPLE else "images"
        sized = replace(kind, options={**kind.options, option: rows // _width(kind)})
        return _Probed(kind, rows, lines, probe(self._address, self._pid, sized, clients, seconds))


def _width(kind: Kind) -> int:
    """Network rows of one sample."""
    return 2 if kind.options.get("guidance") else 1


def _probe_kinds(kinds: Sequence[Kind], cards: Mapping[str, ModelCard]) -> list[Kind]:
    """The kinds to probe, of one sample each: for each set of groups that a program of the mix takes steps of, two.

    Those are the shortest program and the one nearest to `LONGER` steps, with the steps that the mix asks for or that
    the model accepts. From programs of different lengths follows what the first step after a pause takes in addition.
    """
    found: dict[frozenset[Group], dict[int, Kind]] = {}
    for kind in resolve(kinds, summaries(cards), lambda name: _steps(cards[name])):
        options = {name: value for name, value in kind.options.items() if name not in ("count", "images", "labels")}
        lengths = [options.get("steps")]
        if kind.call is Call.SAMPLE and len(options.get("m", ())) <= 1:
            lengths += _steps(cards[kind.model])[:LONGER]
        for steps in lengths:
            probed = replace(kind, options=options if steps is None else {**options, "steps": steps})
            lines = compile_call(probed, cards, None).lines
            found.setdefault(frozenset(lines), {}).setdefault(sum(lines.values()) // _width(kind), probed)
    chosen = []
    for programs in found.values():
        longer = min(programs, key=lambda steps: abs(steps - LONGER))
        chosen += [programs[steps] for steps in sorted({min(programs), longer})]
    return chosen


def _steps(card: ModelCard) -> tuple[int, ...]:
    return card.sampling.accepted_steps() if card.sampling is not None else ()


def _steps_and_wake(alone: Sequence[_Probed]) -> tuple[float, dict[tuple[Group, int], float]]:
    """The seconds of a step of each group and size, and what the first step after a pause takes in addition.

    Non-negative least squares of `compute = wake + sum of steps`, relative to what was measured.
    """
    from scipy.optimize import nnls

    unknown = sorted({(group, found.rows) for found in alone for group in found.lines})
    # With programs of one length alone, the pause cannot be told from the steps, and counts as part of them.
    pauses = len({found.steps for found in alone}) > 1
    matrix = np.zeros((len(alone), 1 + len(unknown)))
    for i, found in enumerate(alone):
        matrix[i, 0] = pauses
        for group, steps in found.lines.items():
            matrix[i, 1 + unknown.index((group, found.rows))] = steps
    seconds = np.array([found.compute for found in alone])
    solution, _ = nnls(matrix / seconds[:, None], np.ones(len(alone)))
    return float(solution[0]), dict(zip(unknown, solution[1:].tolist(), strict=True))


def _step_costs(
    alone: Sequence[_Probed], wake: float, means: Mapping[tuple[Group, int], float]
) -> tuple[StepCost, ...]:
    """Steps as they varied: by the shortest program that has them, each request in proportion to the expected."""
    found: dict[Group, dict[int, tuple[float, ...]]] = {}
    for (group, rows), mean in means.items():
        able = [p for p in alone if p.rows == rows and group in p.lines]
        shortest = min(able, key=lambda p: p.steps)
        expected = sum(steps * means[other, rows] for other, steps in shortest.lines.items())
        scale = mean / expected if expected else 1.0 / shortest.steps
        requests = [r for p in able if p.kind == shortest.kind for r in p.probes.requests]
        # A request that took less than the pause and half its steps says that there was no pause before it.
        taken = [r.compute - wake if r.compute > wake + expected / 2 else r.compute for r in requests]
        found.setdefault(group, {})[rows] = _some([seconds * scale for seconds in taken])
    return tuple(
        StepCost(*group, rows=tuple(sorted(sizes)), seconds=tuple(sizes[rows] for rows in sorted(sizes)))
        for group, sizes in sorted(found.items())
    )


def _between(smallest: Sequence[_Probed]) -> float:
    """Seconds between two batches: the slope of what the server took besides, over the steps of the programs."""
    steps = np.array([found.steps for found in smallest], dtype=np.float64)
    besides = np.array([statistics.median(r.server - r.queue - r.compute for r in f.probes.requests) for f in smallest])
    if np.ptp(steps) == 0.0:
        return 0.0
    return max(0.0, float(np.polyfit(steps, besides, 1)[0]))


def _host_costs(alone: Sequence[_Probed], crowds: Sequence[_Probed]) -> tuple[HostCost, HostCost]:
    """Of samples and of scores, half before and half after the batches; which half is which makes little difference.

    A call's cost is that of the busy server, as far as the probes of several clients tell; what a row adds is not.
    """
    busy = statistics.mean(found.host for found in crowds)
    quiet = statistics.median(found.host for found in alone if found.kind == crowds[0].kind and found.rows == 1)
    costs = []
    for scores in (False, True):
        probed = [found for found in alone if (found.kind.call is Call.SCORE) == scores]
        if not probed:
            costs.append(HostCost())
            continue
        counts = np.array([found.rows / _width(found.kind) for found in probed])
        host = np.array([found.host for found in probed])
        slope, call = np.polyfit(counts, host, 1) if np.ptp(counts) else (0.0, host.mean())
        row = max(0.0, float(slope))
        half = max(0.0, float(call)) * min(1.0, busy / quiet) / 2.0
        costs.append(HostCost(round(half, ROUND), round(half, ROUND), round(row, ROUND)))
    return costs[0], costs[1]


def _interference(crowd: _Probed, tables: Mapping[Group, StepTable], between: float) -> float:
    """By how much longer the device took than its steps by themselves, over the host's work meanwhile."""
    requests = crowd.probes.requests
    rows = _harmonic([r.batch_rows for r in requests])
    batches = len(requests) / rows
    device = batches * sum(n * (tables[group].mean(round(rows)) + between) for group, n in crowd.lines.items())
    return max(0.0, crowd.probes.seconds - device) / crowd.probes.host


def _harmonic(rows: Sequence[float]) -> float:
    """Rows of a batch: each request tells how many rode with it, so that large batches are told of more often."""
    return len(rows) / sum(1.0 / value for value in rows)


def _some(values: Sequence[float]) -> tuple[float, ...]:
    """At most `MOST_SAMPLES` of the values, evenly spread over their order."""
    ordered = sorted(values)
    if len(ordered) > MOST_SAMPLES:
        picked = np.linspace(0, len(ordered) - 1, MOST_SAMPLES).round().astype(int)
        ordered = [ordered[i] for i in picked]
    return tuple(max(10.0**-ROUND, round(value, ROUND)) for value in ordered)
