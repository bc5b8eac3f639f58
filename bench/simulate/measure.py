"""Measures the costs of a real server: by probes of one client alone, of several at once, and of one beside others.

One client alone sees an idle server: what steps of so many rows take, what comes between them, and how long a request
travels. Several at once see by how much the host's work holds the device up (`Costs.interference`). One whose short
requests run beside a few long ones sees how long the way is while the device runs (`Costs.busy_delays`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from models.card import ModelCard

from ..mix import Call, Kind, resolve
from ..targets import NativeTarget
from .costs import Costs, Group
from .infer import Sort, costs_of, smallest, width_of
from .models import summaries
from .probe import probe
from .traffic import compile_call

CLIENTS = (8, 16)
"""Clients of the probes that are to keep the device busy."""

OTHERS = 2
"""Clients whose long requests keep the device running beside the probes that go past them."""

LONGER = 8
"""Steps of the longer program by which a sampler is probed, or what comes nearest to it."""


@dataclass(frozen=True)
class MeasurePlan:
    """How to measure. rows: batch sizes, increasing. rounds: of all probes. seconds: of each probe of a round.

    Probes come in rounds so that a slow spell of the machine falls on all of them a little, and not on one.
    """

    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    rounds: int = 4
    seconds: float = 0.12

    def __post_init__(self) -> None:
        if self.rows[:1] != (1,) or 2 not in self.rows or list(self.rows) != sorted(set(self.rows)):
            raise ValueError(f"probe_rows: must be whole numbers, increasing, with 1 and 2, got {self.rows}")
        if not 1 <= self.rounds <= 1000:
            raise ValueError(f"probe_rounds: must be within 1..1000, got {self.rounds}")
        if not 0 < self.seconds <= 60:
            raise ValueError(f"probe_seconds: must be within (0, 60], got {self.seconds:g}")


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
        self._sorts = [(kind, rows) for kind in kinds for rows in plan.rows if rows >= width_of(kind)]
        self._alone: list[Sort] = []
        self._crowds: list[Sort] = []
        self._beside: list[Sort] = []

    def measure(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Send all rounds of probes. progress: probes done, of how many.

        Raises:
            TargetError: the server does not answer, or refuses a request.
            OSError: the system does not tell a thread's CPU time.
        """
        asyncio.run(self._rounds(progress))

    async def _rounds(self, progress: Callable[[int, int], None]) -> None:
        done, total = 0, self._plan.rounds * (len(self._sorts) + len(CLIENTS) + 1)
        async with NativeTarget(self._address) as target:
            for _ in range(self._plan.rounds):
                for kind, rows in self._sorts:
                    self._alone.append(await self._probe(target, kind, rows, 1, self._plan.seconds))
                    progress(done := done + 1, total)
                shortest = min(smallest(self._alone), key=lambda found: found.compute).kind
                for clients in CLIENTS:
                    rows = width_of(shortest)
                    self._crowds.append(await self._probe(target, shortest, rows, clients, 4 * self._plan.seconds))
                    progress(done := done + 1, total)
                self._beside.append(await self._past_others(target, shortest))
                progress(done := done + 1, total)

    async def _past_others(self, target: NativeTarget, kind: Kind) -> Sort:
        """Probes of one client beside the longest program of the mix, in batches of middling size."""
        rows = self._plan.rows[len(self._plan.rows) // 2]
        longest = max((found for found in self._alone if found.rows == rows), key=lambda found: found.compute).kind
        seconds = 8 * self._plan.seconds
        others = asyncio.create_task(self._probe(target, longest, rows, OTHERS, 1.5 * seconds))
        found = await self._probe(target, kind, width_of(kind), 1, seconds)
        await others
        return found

    def costs(self) -> Costs:
        """What follows from all probes so far."""
        return costs_of(self._alone, self._crowds, self._beside)

    async def _probe(self, target: NativeTarget, kind: Kind, rows: int, clients: int, seconds: float) -> Sort:
        call = compile_call(kind, self._cards, None)
        lines = {group: count // width_of(kind) for group, count in call.lines.items()}
        option = "count" if kind.call is Call.SAMPLE else "images"
        sized = replace(kind, options={**kind.options, option: rows // width_of(kind)})
        return Sort(kind, rows, lines, await probe(target, self._pid, sized, clients, seconds))


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
            found.setdefault(frozenset(lines), {}).setdefault(sum(lines.values()) // width_of(kind), probed)
    chosen = []
    for programs in found.values():
        longer = min(programs, key=lambda steps: abs(steps - LONGER))
        chosen += [programs[steps] for steps in sorted({min(programs), longer})]
    return chosen


def _steps(card: ModelCard) -> tuple[int, ...]:
    return card.sampling.accepted_steps() if card.sampling is not None else ()
