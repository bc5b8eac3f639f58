"""What a load came to: rates, percentiles and errors by kind, and where the time went."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ..mix import Kind
from ..percentiles import percentiles
from ..sender import Outcome
from .occupancy import Batches, Interval
from .plan import LoadPlan

SHARES = (50.0, 90.0, 95.0, 99.0, 99.9)
ALL = "all"
STEP_STAGES = ("network", "update", "steps")
"""The stages that are a request's steps, of which a server may tell the two parts."""


@dataclass(frozen=True, slots=True)
class KindResult:
    """What was measured for one kind of request, or for all; times in seconds, over the answered requests only.

    errors: by code. latency: from the scheduled arrival; service: from the actual sending. Both by percentile.
    stages: where the latency went, in the mean; they add up to its mean. rows: that came back.
    batch_rows: mean over requests of the rows in the batches that they rode in; NaN where the server does not say.
    """

    name: str
    sent: int
    ok: int
    errors: dict[str, int]
    latency: dict[str, float]
    service: dict[str, float]
    stages: dict[str, float]
    rows: int
    batch_rows: float

    @property
    def error_share(self) -> float:
        """Of the requests that were sent; 0 for none."""
        return 1.0 - self.ok / self.sent if self.sent else 0.0


@dataclass(frozen=True, slots=True)
class LoadResult:
    """A whole run. Rates are requests a second.

    server: what it says of itself, and the model that each kind went to.
    offered: requests scheduled in the measured window, over its length. achieved: answers within the window.
    lag: how late this process sent, in seconds; where it is not small beside the latencies, the sender was the
    bottleneck. batches: by network, from the server's own counters; timeline: the same over time, if it was watched.
    """

    plan: LoadPlan
    server: Mapping[str, Any]
    offered: float
    achieved: float
    lag: dict[str, float]
    total: KindResult
    kinds: tuple[KindResult, ...]
    batches: Mapping[str, Batches]
    timeline: tuple[Interval, ...]

    @property
    def errors(self) -> dict[str, int]:
        """Of all kinds, by code."""
        return self.total.errors

    def document(self) -> dict[str, Any]:
        """Its values for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "plan": self.plan.document()}


def summarise(
    plan: LoadPlan,
    kinds: Sequence[Kind],
    outcomes: Sequence[Outcome],
    server: Mapping[str, Any],
    batches: Mapping[str, Batches] | None = None,
    timeline: Sequence[Interval] = (),
) -> LoadResult:
    """Put the outcomes of a run together; those scheduled in the warm-up are left out."""
    measured = [outcome for outcome in outcomes if outcome.scheduled >= plan.warmup]
    answered = sum(
        outcome.ok and plan.warmup <= outcome.scheduled + outcome.latency < plan.seconds for outcome in outcomes
    )
    by_kind: list[list[Outcome]] = [[] for _ in kinds]
    for outcome in measured:
        by_kind[outcome.kind].append(outcome)
    return LoadResult(
        plan=plan,
        server=server,
        offered=len(measured) / plan.duration,
        achieved=answered / plan.duration,
        lag=percentiles([outcome.lag for outcome in measured], SHARES),
        total=_kind_result(ALL, measured),
        kinds=tuple(_kind_result(kind.name, own) for kind, own in zip(kinds, by_kind, strict=True)),
        batches=batches or {},
        timeline=tuple(timeline),
    )


def _kind_result(name: str, outcomes: Sequence[Outcome]) -> KindResult:
    answered = [outcome for outcome in outcomes if outcome.ok]
    # A server that knows its batches reports at least one row for each answer.
    riding = [outcome.answer.mean_batch_rows for outcome in answered if outcome.answer.mean_batch_rows]
    return KindResult(
        name=name,
        sent=len(outcomes),
        ok=len(answered),
        errors=dict(sorted(Counter(outcome.code for outcome in outcomes if not outcome.ok).items())),
        latency=percentiles([outcome.latency for outcome in answered], SHARES),
        service=percentiles([outcome.service for outcome in answered], SHARES),
        stages=_stages(answered),
        rows=sum(outcome.answer.rows for outcome in answered),
        batch_rows=float(np.mean(riding)) if riding else math.nan,
    )


def _stages(answered: Sequence[Outcome]) -> dict[str, float]:
    """Mean seconds by stage, as far as the server tells them apart.

    late: until this process sent the request. queue: until its first step. network: in the networks of its steps.
    update: the rest of its steps, gathering rows, noise and updates; steps, where a server does not tell the two apart.
    encode: making the response's images or energies. waits, host: in the server and none of these, so waiting for the
    next step and reading the request. wire: between the two processes and in the libraries of both.
    """
    if not answered:
        return {}

    def mean(values: Sequence[float]) -> float:
        return float(np.mean(values))

    late, service = mean([outcome.lag for outcome in answered]), mean([outcome.service for outcome in answered])
    queue, compute, network, encode, server = (
        mean([getattr(outcome.answer, f"{name}_seconds") for outcome in answered])
        for name in ("queue", "compute", "network", "encode", "server")
    )
    if not (queue or compute):
        return {"late": late, "server and wire": service}
    steps = {"network": network, "update": compute - network} if network else {"steps": compute}
    if not server:
        return {"late": late, "queue": queue, **steps, "waits, host, wire": service - queue - compute}
    rest = server - queue - compute - encode
    return {
        **{"late": late, "queue": queue, **steps},
        **({"encode": encode} if encode else {}),
        **{"waits, host": rest, "wire": service - server},
    }
