"""What a profile found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..environment import Environment
from ..percentiles import percentiles
from .measure import Timed
from .stages import STAGES, Marks, stage_seconds


@dataclass(frozen=True, slots=True)
class Server:
    """One of those asked; times in seconds, by percentile: the whole call, and what of it was not the engine's."""

    name: str
    total: dict[str, float]
    added: dict[str, float]
    engine: dict[str, float]

    @classmethod
    def of(cls, name: str, calls: Sequence[Timed]) -> Server:
        shares = (50, 90, 99)
        return cls(
            name,
            percentiles([call.seconds for call in calls], shares),
            percentiles([call.added for call in calls], shares),
            percentiles([call.engine for call in calls], shares),
        )


@dataclass(frozen=True, slots=True)
class StageTime:
    """Seconds of a stage over the requests. share: of the mean request."""

    name: str
    meaning: str
    ours: bool
    p10: float
    p50: float
    p90: float
    share: float


@dataclass(frozen=True, slots=True)
class Profile:
    """What was asked of whom, and what came of it.

    pause: seconds before each call. bare: the engine in the client's process. floor: the same engine behind the least
    server that there can be. threads: CPU seconds a request of the server's threads, by name.
    """

    environment: Environment
    model: str
    sampler: str
    steps: int
    requests: int
    pause: float
    bare: Server
    echo: Server
    floor: Server
    served: Server
    probed: Server
    stages: tuple[StageTime, ...]
    threads: dict[str, float]

    @property
    def task(self) -> str:
        """What was asked for, in words."""
        return f"{self.sampler}, {self.steps} step{'s' if self.steps > 1 else ''}"

    @property
    def over_floor(self) -> float:
        """Added latency at p50, over the floor's: 1 would be the least possible."""
        return self.served.added["p50"] / self.floor.added["p50"]


def stage_times(calls: Sequence[Timed], requests: Sequence[Marks]) -> tuple[StageTime, ...]:
    """The stages of probed requests, in their order.

    Raises:
        ValueError: there are not as many marked requests as calls, or marks are out of place.
    """
    if len(calls) != len(requests):
        raise ValueError(f"{len(calls)} calls were made, and {len(requests)} were marked")
    pairs = zip(calls, requests, strict=True)
    table = [stage_seconds(call.began, marks, call.ended) for call, marks in pairs]
    mean = float(np.mean([call.seconds for call in calls]))
    found = []
    for stage in STAGES:
        seconds = np.array([row[stage.name] for row in table])
        p10, p50, p90 = (float(value) for value in np.percentile(seconds, (10, 50, 90)))
        found.append(StageTime(*stage[:3], p10, p50, p90, float(seconds.mean()) / mean))
    return tuple(found)
