"""The server's own machinery in this process: its engine with a runner, asked as the API asks it."""

from __future__ import annotations

import math
import queue
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from models.bundle import Bundle
from models.program import Program
from server.backend import Backend
from server.config import Limits
from server.errors import ServerError
from server.loop.engine import Engine
from server.loop.sizes import RowSizes
from server.types import Job, ModelKey, Row

PATIENCE = 300.0
"""Seconds after which a request that was not answered ends the measurement."""

WHOLE_BATCHES = Limits(step_seconds=1e9)
"""Batches are not cut to a budget of time: their size is what the tables go by."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Taken:
    """Seconds of one request: all, those within its steps, and those of them that the engine says its networks took.

    NaN where it is not known. On a device the engine tells of whole steps and not of networks.
    """

    seconds: float
    steps: float = math.nan
    networks: float = math.nan


class Served:
    """One model in an engine of the server. A context manager: the engine's thread ends with it."""

    def __init__(self, bundle: Bundle, backend: Backend, limits: Limits = WHOLE_BATCHES) -> None:
        """Load and warm up the bundle as the server's repository does.

        Raises:
            EngineError, BundleError: the backend cannot run it.
        """
        self.key = ModelKey(bundle.card.name, bundle.manifest.version)
        self._sizes = RowSizes.of(bundle.card)
        runner = backend.runner(bundle, limits, fixed_rows={})
        runner.warm_up()
        self.engine = Engine(limits, depth=backend.depth, turn=backend.turn, at_once_seconds=backend.at_once_seconds)
        self.engine.add_model(self.key, runner)

    def __enter__(self) -> Self:
        self.engine.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.engine.stop()

    def job(self, program: Program, rows: int, images: Floats | None, seed: int, ended: queue.SimpleQueue) -> Job:
        """A request. images: `(rows, elements)`, where the program starts from them. ended: gets its error, or None."""
        job = Job(self.key, lambda _, error: ended.put(error))
        pictures = [None] * rows if images is None else images
        job.rows = [Row(job, seed, sample, program, image=pictures[sample]) for sample in range(rows)]
        job.row_bytes = self._sizes.row_bytes(program)
        return job

    def ask(self, program: Program, rows: int, images: Floats | None = None, seed: int = 0) -> Taken:
        """Run one request and wait for its end.

        Raises:
            ServerError: it was refused, or failed. TimeoutError: it was not answered.
        """
        ended: queue.SimpleQueue[ServerError | None] = queue.SimpleQueue()
        began = perf_counter()
        job = self.job(program, rows, images, seed, ended)
        self.engine.submit(job)
        try:
            error = ended.get(timeout=PATIENCE)
        except queue.Empty:
            raise TimeoutError(f"the engine did not answer within {PATIENCE:g} s") from None
        seconds = perf_counter() - began
        if error is not None:
            raise error
        return Taken(seconds, job.compute_seconds, job.network_seconds)
