"""Arrivals that were recorded: one JSON object a line, `{"at": seconds, "kind": "ddim:4:count=2", "seed": 7}`.

`at` counts from the start of the trace. A kind is written as in a mix, without the weight (`bench.mix`). Without a seed
a request gets one from the load's. Lines need not be in order, and empty ones mean nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..mix import Kind, MixError, parse_kind
from ..schedule import MOST_SEEDS, Schedule, check_rate
from .plan import LONGEST, MOST_REQUESTS


class TraceError(ValueError):
    """A trace that cannot be read; the message names the file and the line."""


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    at: Annotated[float, msgspec.Meta(ge=0, le=LONGEST)]
    kind: str
    seed: Annotated[int, msgspec.Meta(ge=0, lt=MOST_SEEDS)] | None = None


@dataclass(frozen=True)
class Replay:
    """Arrivals as they were recorded, or stretched to another mean rate.

    file: where they were read from. rate: requests a second on average. kinds: those of the trace.
    recorded: as they were; a seed below 0 stands for none.

    Raises:
        ValueError: the rate is not positive and finite.
    """

    file: str
    rate: float
    kinds: tuple[str, ...] = field(repr=False)
    recorded: Schedule = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        check_rate(self.rate)

    @property
    def seconds(self) -> float:
        """The shortest time that holds all of the requests."""
        return math.nextafter(float(self._times()[-1]), math.inf)

    @property
    def mix(self) -> str:
        """The kinds, each with its number of requests for a weight."""
        counts = np.bincount(self.recorded.kind, minlength=len(self.kinds)).tolist()
        return ",".join(f"{name}={count}" for name, count in zip(self.kinds, counts, strict=True))

    def at_rate(self, rate: float) -> Self:
        return replace(self, rate=rate)

    def schedule(self, seconds: float, weights: Sequence[float], seed: int) -> Schedule:
        """Those within `[0, seconds)`. weights: not used, the kinds are recorded."""
        at = self._times()
        drawn = np.random.Generator(np.random.PCG64(seed)).integers(MOST_SEEDS, size=len(at))
        seeds = np.where(self.recorded.seed < 0, drawn, self.recorded.seed)
        within = at < seconds
        return Schedule(at[within], self.recorded.kind[within], seeds[within])

    def _times(self) -> NDArray[np.float64]:
        return self.recorded.at * (_mean_rate(self.recorded) / self.rate)

    def __str__(self) -> str:
        return f"arrivals of {Path(self.file).name}, {self.rate:.4g} requests/s"


def read_trace(path: Path) -> Replay:
    """A trace at the rate at which it was recorded.

    Raises:
        TraceError: a line that is no such object, or a kind that cannot be read, or too many lines, or none; or the
            file cannot be opened.
    """
    decoder = msgspec.json.Decoder(_Line)
    lines: list[_Line] = []
    kinds: Counter[str] = Counter()
    try:
        file = path.open("rb")
    except OSError as error:
        raise TraceError(f"trace {path}: {error.strerror}") from error
    with file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                line = decoder.decode(text)
                if line.kind not in kinds:
                    parse_kind(line.kind)
            except (msgspec.DecodeError, UnicodeDecodeError, MixError) as error:
                raise TraceError(f"trace {path}: line {number}: {error}") from error
            if "," in line.kind:
                raise TraceError(f"trace {path}: line {number}: one kind is expected, got {line.kind!r}")
            kinds[line.kind] += 1
            lines.append(line)
            if len(lines) > MOST_REQUESTS:
                raise TraceError(f"trace {path}: line {number}: more than {MOST_REQUESTS} requests")
    if not lines:
        raise TraceError(f"trace {path}: holds no request")
    lines.sort(key=lambda line: line.at)
    index = {name: position for position, name in enumerate(kinds)}
    recorded = Schedule(
        np.array([line.at for line in lines]),
        np.array([index[line.kind] for line in lines]),
        np.array([-1 if line.seed is None else line.seed for line in lines]),
    )
    return Replay(str(path), _mean_rate(recorded), tuple(kinds), recorded)


def write_trace(path: Path, kinds: Sequence[Kind], schedule: Schedule) -> None:
    """Write arrivals so that they can be replayed: times, kinds and seeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    requests = zip(schedule.at.tolist(), schedule.kind.tolist(), schedule.seed.tolist(), strict=True)
    lines = (msgspec.json.encode(_Line(at, kinds[kind].name, seed)) for at, kind, seed in requests)
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def _mean_rate(recorded: Schedule) -> float:
    """From the start to the last request; as many requests a second as there are, where all come at the start."""
    last = float(recorded.at[-1])
    return len(recorded) / last if last > 0 else float(len(recorded))
