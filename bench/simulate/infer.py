"""From what probes took to what things cost."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..mix import Call, Kind
from .costs import Costs, Group, HostCost, StepCost, StepTable
from .probe import Probed, Probes

SPELL_SECONDS = 0.25
"""How long the machine is taken to be as fast as it is."""

ROUND = 7  # decimals of a second
MOST_SAMPLES = 200
"""Steps of one group and size that are kept."""


@dataclass(frozen=True)
class Sort:
    """Probes of one kind at one size. rows: network rows of its batches. lines: steps of a row, by group."""

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


def costs_of(alone: Sequence[Sort], crowds: Sequence[Sort], beside: Sequence[Sort] = ()) -> Costs:
    """The costs by which these probes took what they took.

    alone: of one client, of every kind at every size. crowds: of one of these kinds at its smallest, of many clients.
    beside: of one client, while others kept the device busy.
    """
    alone = _together(alone)
    wake, means = _steps_and_wake(alone)
    spells = _Spells.of([(r.ended, took, expected) for s in alone for r, took, expected in _taken(s, wake, means)])
    steps = _step_costs(alone, wake, means, spells)
    between = _between(smallest(alone))
    sample, score = _host_costs(alone, crowds)
    ways = [
        [way for found in sorts for way in _ways(found, score if found.kind.call is Call.SCORE else sample, between)]
        for sorts in (smallest(alone), beside)
    ]
    tables = {step.group: StepTable(step) for step in steps}
    held_up = statistics.median(_interference(crowd, tables, between) for crowd in crowds)
    return Costs(
        steps=steps,
        sample=sample,
        score=score,
        between=round(between, ROUND),
        wake=round(wake, ROUND),
        spells=tuple(round(factor, 4) for factor in spells.factors),
        spell_seconds=SPELL_SECONDS,
        delays=_some(ways[0]),
        busy_delays=_some(ways[1]),
        interference=round(held_up, 3),
    )


def smallest(alone: Sequence[Sort]) -> list[Sort]:
    """The probes of one sample or image."""
    return [found for found in alone if found.rows == width_of(found.kind)]


def width_of(kind: Kind) -> int:
    """Network rows of one sample."""
    return 2 if kind.options.get("guidance") else 1


def _steps_and_wake(alone: Sequence[Sort]) -> tuple[float, dict[tuple[Group, int], float]]:
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
    alone: Sequence[Sort], wake: float, means: Mapping[tuple[Group, int], float], spells: _Spells
) -> tuple[StepCost, ...]:
    """Steps as they varied within a spell: by the shortest program that has them."""
    found: dict[Group, dict[int, tuple[float, ...]]] = {}
    for (group, rows), mean in means.items():
        shortest = min((s for s in alone if s.rows == rows and group in s.lines), key=lambda s: s.steps)
        # The fit may find nothing for a group that comes only with others; it must take some time nonetheless.
        mean = mean or shortest.compute / shortest.steps / 100
        taken = [took / expected / spells.at(r.ended) for r, took, expected in _taken(shortest, wake, means)]
        found.setdefault(group, {})[rows] = _some([mean * share for share in taken] or [mean])
    return tuple(
        StepCost(*group, rows=tuple(sorted(sizes)), seconds=tuple(sizes[rows] for rows in sorted(sizes)))
        for group, sizes in sorted(found.items())
    )


def _ways(found: Sort, host: HostCost, between: float) -> list[float]:
    """What requests took besides their wait for the device, their batches and the host's work."""
    known = host.receive + host.answer + host.row + between * found.steps
    return [max(0.0, r.latency - r.queue - r.compute - known) for r in found.probes.requests]


def _taken(found: Sort, wake: float, means: Mapping[tuple[Group, int], float]) -> Iterator[tuple[Probed, float, float]]:
    """What the steps of each request took, and what they were to take."""
    expected = sum(steps * means[group, found.rows] for group, steps in found.lines.items())
    if expected <= 0:  # a few noisy probes can leave nothing for the steps: no share can be told then
        return
    for request in found.probes.requests:
        # One that took less than the pause and half of its steps says that there was no pause before it.
        paused = wake if request.compute > wake + expected / 2 else 0.0
        yield request, request.compute - paused, expected


class _Spells:
    """How much longer steps took in each stretch of `SPELL_SECONDS` in which probes ran, than on average.

    A machine that others use is slow for a while and then fast: steps that follow each other are slow together, and a
    queue grows as it would not if each were drawn by itself.
    """

    def __init__(self, factors: Mapping[int, float]) -> None:
        self._factors = factors
        self.factors = tuple(factors[stretch] for stretch in sorted(factors))

    @classmethod
    def of(cls, taken: Sequence[tuple[float, float, float]]) -> _Spells:
        """taken: when a request ended, what its steps took, and what they were to take.

        A stretch's factor is of all its time: by requests, one hiccup in a step of half a millisecond would make it
        look as if a step of fifty took ten times as long.
        """
        stretches: dict[int, tuple[float, float]] = {}
        for ended, took, expected in taken:
            before = stretches.get(int(ended / SPELL_SECONDS), (0.0, 0.0))
            stretches[int(ended / SPELL_SECONDS)] = before[0] + took, before[1] + expected
        factors = {stretch: took / expected for stretch, (took, expected) in stretches.items()}
        whole = statistics.mean(factors.values())
        return cls({stretch: factor / whole for stretch, factor in factors.items()})

    def at(self, when: float) -> float:
        return self._factors[int(when / SPELL_SECONDS)]


def _together(sorts: Sequence[Sort]) -> list[Sort]:
    """The probes of all rounds, those of one kind and size as one."""
    found: dict[tuple[str, object, int], Sort] = {}
    for sort in sorts:
        key = (sort.kind.model, repr(sort.kind), sort.rows)
        before = found.get(key)
        if before is not None:
            a, b = before.probes, sort.probes
            sort = replace(sort, probes=Probes([*a.requests, *b.requests], a.seconds + b.seconds, a.host + b.host))
        found[key] = sort
    return list(found.values())


def _between(smallest: Sequence[Sort]) -> float:
    """Seconds between two batches: the slope of what the server took besides, over the steps of the programs."""
    steps = np.array([found.steps for found in smallest], dtype=np.float64)
    besides = np.array([statistics.median(r.server - r.queue - r.compute for r in f.probes.requests) for f in smallest])
    if np.ptp(steps) == 0.0:
        return 0.0
    return max(0.0, float(np.polyfit(steps, besides, 1)[0]))


def _host_costs(alone: Sequence[Sort], crowds: Sequence[Sort]) -> tuple[HostCost, HostCost]:
    """Of samples and of scores, half before and half after the batches; which half is which makes little difference.

    A call's cost is that of the busy server, as far as the probes of several clients tell; what a row adds is not.
    """
    from scipy.optimize import nnls

    busy = statistics.mean(found.host for found in crowds)
    quiet = statistics.median(found.host for found in smallest(alone) if found.kind == crowds[0].kind)
    costs = []
    for scores in (False, True):
        probed = [found for found in alone if (found.kind.call is Call.SCORE) == scores]
        if not probed:
            costs.append(HostCost())
            continue
        # Relative to what was measured, as for the steps: else the largest calls alone decide.
        host = np.array([found.host for found in probed])
        matrix = np.array([[1.0, found.rows / width_of(found.kind)] for found in probed])
        call, row = nnls(matrix / host[:, None], np.ones(len(probed)))[0].tolist()
        half = call * min(1.0, busy / quiet) / 2.0
        costs.append(HostCost(round(half, ROUND), round(half, ROUND), round(row, ROUND)))
    return costs[0], costs[1]


def _interference(crowd: Sort, tables: Mapping[Group, StepTable], between: float) -> float:
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
