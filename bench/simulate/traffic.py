"""What comes to the fleet: each kind of call of a mix, compiled to the programs that the real server would run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.card import ModelCard
from models.program import Program
from models.samplers import OptionError, SampleOptions, UnsupportedError, compile_sample, compile_score, find_scale
from server.loop.sizes import RowSizes
from server.types import Job, ModelKey, Row

from ..mix import Call, Kind, MixError, resolve
from .costs import Costs, Group, HostCost
from .models import summaries


@dataclass(frozen=True, slots=True)
class CompiledCall:
    """One kind of call, ready to be made into jobs. Times are in seconds.

    programs: one a row. host: the host's work on it, with `host_rows` images. lines: how often its rows take a step of
    each group, in network rows. timeout: until its callers give up, where it is not that of all.
    """

    name: str
    weight: float
    model: ModelKey
    programs: tuple[Program, ...]
    row_bytes: int
    priority: int
    host: HostCost
    host_rows: int
    lines: Mapping[Group, int]
    timeout: float | None = None

    def job(self, on_done: Any, seed: int, deadline: float | None, now: float) -> Job:
        """A job as the API makes one, which was received `now`."""
        job = Job(self.model, on_done, priority=self.priority, deadline=deadline, arrived=now)
        job.rows = [Row(job, seed, sample, program) for sample, program in enumerate(self.programs)]
        job.row_bytes = self.row_bytes
        return job


def compile_calls(kinds: Sequence[Kind], cards: Mapping[str, ModelCard], costs: Costs) -> tuple[CompiledCall, ...]:
    """The calls of a mix.

    Raises:
        MixError: no model serves a kind, or not with its options. CostError: a step of it has no cost.
    """
    known = resolve(kinds, summaries(cards), lambda name: _accepted_steps(cards[name]))
    return tuple(compile_call(kind, cards, costs) for kind in known)


def _accepted_steps(card: ModelCard) -> tuple[int, ...]:
    return card.sampling.accepted_steps() if card.sampling is not None else ()


def compile_call(kind: Kind, cards: Mapping[str, ModelCard], costs: Costs | None) -> CompiledCall:
    """One kind of call, for which a model has been chosen. costs: None where they are yet to be measured.

    Raises: as `compile_calls`.
    """
    if kind.call is Call.INFER:
        raise MixError(f"{kind.name!r}: an inference of any model is not simulated, samples and scores are")
    card = cards.get(kind.model)
    if card is None:
        raise MixError(f"{kind.name!r}: no model {kind.model!r}; there are: {', '.join(cards)}")
    options = dict(kind.options)
    priority = options.pop("priority", 0)
    try:
        programs = _samples(card, kind.sampler, options) if kind.call is Call.SAMPLE else _scores(card, options)
    except (OptionError, UnsupportedError) as error:
        raise MixError(f"{kind.name!r}: {error}") from error
    lines: Counter[Group] = Counter()
    for program in programs:
        for line in program.lines:
            lines[Group(card.name, line.network, line.kind)] += 2 if line.guided else 1
    host = HostCost()
    if costs is not None:
        host = costs.sample if kind.call is Call.SAMPLE else costs.score
        for group in lines:
            costs.table(group)
    return CompiledCall(
        name=kind.name,
        weight=kind.weight,
        model=ModelKey(card.name, 1),
        programs=programs,
        row_bytes=max(RowSizes.of(card).row_bytes(program) for program in programs),
        priority=priority,
        host=host,
        host_rows=len(programs),
        lines=lines,
        timeout=kind.timeout,
    )


def _samples(card: ModelCard, sampler: str, options: dict[str, Any]) -> tuple[Program, ...]:
    labels = options.pop("labels", ())
    count = options.pop("count", max(1, len(labels)))
    program = compile_sample(card, SampleOptions(sampler=sampler, **options))
    return (program,) * count


def _scores(card: ModelCard, options: dict[str, Any]) -> tuple[Program, ...]:
    names: tuple[str | None, ...] = options.get("scales", (None,))
    if names == ("all",) and card.energy is not None:
        names = tuple(scale.name for scale in card.energy.scales)
    programs = [compile_score(card, find_scale(card, name)) for name in names]
    return tuple(program for program in programs for _ in range(options.get("images", 1)))
