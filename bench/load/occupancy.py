"""How full a fewstep server's batches and its time are while a load runs, from its metrics page.

The page is fetched now and then and read after the load: making it costs the server 2 ms or so, reading it costs this
process as much again, which would be in the latencies that it measures.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Self

from prometheus_client.samples import Sample

from ..metrics_page import fetch_page, parse_page, total
from ..targets import TargetError

MOST_PAGES = 600
_BATCH_ROWS = "fewstep_batch_rows_"


@dataclass(frozen=True, slots=True)
class Batches:
    """Batches that a network ran, and the rows in one of them on average."""

    batches: float
    mean_rows: float


@dataclass(frozen=True, slots=True)
class Interval:
    """What the server did from `start` for `seconds`, since the start of the load.

    networks: by `model/network`, of those that ran. busy: share of the time that a step ran.
    in_flight, waiting: rows that had a slot, and that waited for one, at its end.
    """

    start: float
    seconds: float
    networks: Mapping[str, Batches]
    busy: float
    in_flight: float
    waiting: float


class Watch:
    """Fetches the page every `interval` seconds from a thread of its own; a context manager.

    address: HOST:PORT of the metrics page. interval: 0 for before and after the load alone. A page that cannot be
    fetched during the load is left out.

    Raises:
        TargetError: on entering, where there is no such page.
    """

    def __init__(self, address: str, interval: float) -> None:
        self._address, self._interval = address, interval
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="metrics page", daemon=True)
        self._pages: list[tuple[float, str]] = []

    def __enter__(self) -> Self:
        try:
            self._fetch()
        except OSError as error:
            raise TargetError(f"{self._address}: no metrics page: {error}") from error
        if self._interval:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._interval:
            self._thread.join()
        if kind is None:
            self._fetch()

    def _fetch(self) -> None:
        page = fetch_page(self._address)
        self._pages.append((time.monotonic(), page))

    def _look(self) -> None:
        while not self._over.wait(self._interval) and len(self._pages) < MOST_PAGES:
            try:
                self._fetch()
            except OSError:  # a server that is busy with a load may be late with it
                continue

    def timeline(self, origin: float) -> list[Interval]:
        """What happened between one page and the next. origin: the start of the load, on the monotonic clock."""
        read = [(when - origin, parse_page(page)) for when, page in self._pages]
        return [interval_between(before, after) for before, after in pairwise(read)]

    def overall(self) -> dict[str, Batches]:
        """Batches between the first page and the last, by `model/network`."""
        return batches_between(parse_page(self._pages[0][1]), parse_page(self._pages[-1][1]))


def batches_between(before: Sequence[Sample], after: Sequence[Sample]) -> dict[str, Batches]:
    """What ran between two readings of the page, by `model/network`."""
    earlier, later = _batch_counters(before), _batch_counters(after)
    ran = {}
    for key, (count, rows) in sorted(later.items()):
        earlier_count, earlier_rows = earlier.get(key, (0.0, 0.0))
        if count > earlier_count:
            ran[key] = Batches(count - earlier_count, (rows - earlier_rows) / (count - earlier_count))
    return ran


def interval_between(before: tuple[float, list[Sample]], after: tuple[float, list[Sample]]) -> Interval:
    """What happened between two readings, each with its time in seconds."""
    (start, earlier), (end, later) = before, after
    seconds = end - start
    stepped = total(later, "fewstep_step_seconds_sum") - total(earlier, "fewstep_step_seconds_sum")
    return Interval(
        start=start,
        seconds=seconds,
        networks=batches_between(earlier, later),
        busy=stepped / seconds,
        in_flight=total(later, "fewstep_rows_in_flight"),
        waiting=total(later, "fewstep_rows_waiting"),
    )


def _batch_counters(samples: Sequence[Sample]) -> dict[str, tuple[float, float]]:
    """Batches and rows run so far, by `model/network`."""
    found: dict[str, dict[str, float]] = {}
    for sample in samples:
        if sample.name in (f"{_BATCH_ROWS}count", f"{_BATCH_ROWS}sum"):
            key = f"{sample.labels['model']}/{sample.labels['network']}"
            found.setdefault(key, {})[sample.name.removeprefix(_BATCH_ROWS)] = sample.value
    return {key: (values["count"], values["sum"]) for key, values in found.items()}
