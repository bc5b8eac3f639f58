"""What the status page tells, as data: the models, the load, latencies, errors, and what the batches look like."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from importlib import import_module

import grpc
import msgspec

from .. import __version__
from ..config import Config
from ..loop.engines import Engines
from ..loop.load import ModelLoad
from ..repository import Model, Repository
from ..types import ModelKey, Row
from .recent import CALL_SECONDS, COLUMN_SECONDS, COLUMNS, STEPS_LEFT, Calls, Moments, Recent, steps_left_class


class NetworkStatus(msgspec.Struct, frozen=True):
    """Measured cost of a step in seconds, `fixed + per_row * rows`; both 0 before any was measured."""

    name: str
    fixed_seconds: float
    seconds_per_row: float


class ModelStatus(msgspec.Struct, frozen=True):
    """A model at work. in_flight_by_steps_left: its rows in flight by class of `Picture.steps_left`."""

    name: str
    version: int
    family: str
    state: str
    networks: list[NetworkStatus]
    rows_in_flight: int
    capacity: int
    rows_waiting: int
    in_flight_by_steps_left: list[int]


class Load(msgspec.Struct, frozen=True):
    """requests_per_second: of the last minute; the rest of what passed is of the time of the picture.

    busy: the share of that time in which a batch ran, on average over the devices. mean_batch_rows: 0 where none did.
    """

    requests_open: int
    rows_waiting: int
    rows_in_flight: int
    requests_per_second: float
    rows_per_second: float
    mean_batch_rows: float
    busy: float


class CallStatus(msgspec.Struct, frozen=True):
    """One method in the last minute; latencies in seconds, of the calls that ended well."""

    rpc: str
    ok: int
    failed: int
    p50: float
    p90: float
    p99: float


class ErrorStatus(msgspec.Struct, frozen=True):
    """A call that failed. time: seconds since the epoch."""

    time: float
    rpc: str
    code: str
    request_id: str
    text: str


class Lane(msgspec.Struct, frozen=True):
    """The batches of one network. columns: for each column of time the mean rows by class of steps left."""

    model: str
    network: str
    columns: list[list[float]]


class Picture(msgspec.Struct, frozen=True):
    """The batches of the last seconds, the oldest column first. steps_left: the lower end of each class."""

    column_seconds: float
    steps_left: tuple[int, ...]
    lanes: list[Lane]


class Status(msgspec.Struct, frozen=True):
    """All that the status page shows. trouble: why no requests are taken; empty where they are."""

    versions: dict[str, str]
    time: float
    uptime_seconds: float
    ready: bool
    trouble: str
    load: Load
    models: list[ModelStatus]
    calls: list[CallStatus]
    errors: list[ErrorStatus]
    picture: Picture


class StatusReader:
    """Reads the status of a running server; from any thread."""

    def __init__(
        self, config: Config, engines: Engines, repository: Repository, recent: Recent, trouble: Callable[[], str]
    ) -> None:
        """trouble: why no requests are taken; empty where they are."""
        self._engines, self._repository, self._recent, self._trouble = engines, repository, recent, trouble
        self._began = time.time()
        self._versions = {
            "fewstep": __version__,
            "Python": platform.python_version(),
            config.engine: str(import_module(config.engine).__version__),  # its distribution may have another name
            "gRPC": grpc.__version__,
        }

    def read(self) -> Status:
        """The status at this moment."""
        loads, rows = self._engines.snapshot()
        columns = self._recent.batches()
        calls = self._recent.calls()
        trouble = self._trouble()
        now = time.time()
        return Status(
            versions=self._versions,
            time=now,
            uptime_seconds=now - self._began,
            ready=not trouble,
            trouble=trouble,
            load=self._load(len(rows), columns, calls),
            models=self._models(loads, rows),
            calls=[CallStatus(rpc, *found) for rpc, found in calls.items()],
            errors=[ErrorStatus(*error) for error in self._recent.errors()],
            picture=Picture(COLUMN_SECONDS, STEPS_LEFT, _lanes(columns)),
        )

    def _load(self, in_flight: int, columns: list[dict[tuple[str, str], Moments]], calls: dict[str, Calls]) -> Load:
        totals = self._engines.totals()
        moments = [moment for column in columns for moment in column.values()]
        batches, rows = sum(moment.batches for moment in moments), sum(moment.rows for moment in moments)
        seconds = self._recent.seconds(COLUMNS * COLUMN_SECONDS)
        ended = sum(found.ok + found.failed for found in calls.values())
        return Load(
            requests_open=totals.requests_open,
            rows_waiting=totals.rows_waiting,
            rows_in_flight=in_flight,
            requests_per_second=ended / self._recent.seconds(CALL_SECONDS),
            rows_per_second=rows / seconds,
            mean_batch_rows=rows / max(1, batches),
            busy=min(1.0, sum(moment.seconds for moment in moments) / seconds / len(self._engines)),
        )

    def _models(self, loads: Mapping[ModelKey, ModelLoad], rows: list[Row]) -> list[ModelStatus]:
        known = {model.key: model for model in self._repository.models}
        classes = {key: [0] * len(STEPS_LEFT) for key in loads}
        for row in rows:
            classes[row.job.model][steps_left_class(row)] += 1
        return [_model(key, known.get(key), load, classes[key]) for key, load in sorted(loads.items())]


def _model(key: ModelKey, model: Model | None, load: ModelLoad, classes: list[int]) -> ModelStatus:
    """model: None for one that has been replaced or unloaded, and ends what it had begun."""
    names = sorted(load.costs) if model is None else list(model.card.networks)
    return ModelStatus(
        name=key.name,
        version=key.version,
        family="" if model is None else model.card.family,
        state="leaving" if model is None else "serving",
        networks=[NetworkStatus(name, *load.costs.get(name, (0.0, 0.0))) for name in names],
        rows_in_flight=load.in_flight,
        capacity=load.capacity,
        rows_waiting=load.waiting,
        in_flight_by_steps_left=classes,
    )


def _lanes(columns: list[dict[tuple[str, str], Moments]]) -> list[Lane]:
    nothing = [0.0] * len(STEPS_LEFT)
    lanes = sorted({lane for column in columns for lane in column})
    return [Lane(*lane, [_rows(column[lane]) if lane in column else nothing for column in columns]) for lane in lanes]


def _rows(moments: Moments) -> list[float]:
    """Mean rows by class, over the time in which batches ran."""
    return [round(rows / moments.seconds, 2) if moments.seconds else 0.0 for rows in moments.row_seconds]
