"""Runs the batches of one model on a device: fills in what the step is told, launches it, and reads what it gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from export.runtime.device import DeviceSession, batch_buckets
from models.bundle import Bundle
from models.program import SAMPLE, Line

from ...config import Limits
from ...types import Batch
from ..protocols import NetworkError
from ..sizes import RowSizes, kept_predictions
from .control import Control, Wanted, write
from .finish import DeviceStep, Downloads, Shown, Turn
from .plan import Plan, known_plans, plan_of
from .pools import Pools
from .step import StepFunction
from .stream import Stream


class DeviceRunner:
    """One loaded model on a device: its sessions, state pools and captured steps. Used by the engine's thread alone."""

    def __init__(
        self,
        bundle: Bundle,
        sessions: Mapping[str, DeviceSession],
        limits: Limits,
        stream: Stream,
        *,
        fixed_rows: Mapping[str, int],
    ) -> None:
        """fixed_rows: networks that run at one fixed batch size, padded, so that their results cannot depend on it."""
        self.card = bundle.card
        self.capacity = RowSizes.of(self.card).slots(limits)
        self._sessions = sessions
        self._stream = stream
        self._fixed_rows = fixed_rows
        self._buckets = batch_buckets(limits.max_batch_rows)
        self._captures = stream.captures()
        self._plans = known_plans(self.card)
        self._pools = Pools(self.card, self.capacity, self._buckets[-1], stream.device)
        self._functions: dict[tuple[Plan, int], StepFunction] = {}

    @property
    def captured(self) -> int:
        """How many steps were captured: no more than known plans times buckets."""
        return sum(function.captured for function in self._functions.values())

    def warm_up(self) -> None:
        """Capture the steps of all known plans at every batch bucket, the widest first: the others use its memory.

        Where nothing is captured, run them at a few sizes. From the thread that loads the model, while others are
        served.
        """
        sizes = self._buckets[::-1] if self._captures is not None else (2, 1)
        with self._stream.active(), torch.no_grad():
            for plan in self._plans:
                fixed = self._fixed_rows.get(plan.network)
                for rows in sizes if fixed is None else (fixed,):
                    self._make(plan, rows).capture(self._captures)
            # The host's memory for what it gets beside the results, of each size; see `StepFunction.capture`.
            states = [self._stream.download(self._pools.state[SAMPLE][:rows], aside=True) for rows in sizes]
            self._stream.mark(aside=True).wait()
            del states

    def enqueue(self, batch: Batch) -> Turn:
        """Give the device the batch's steps, and what it is to give back. Returns before the device has run them.

        Raises:
            NetworkError: the network could not be run; no state has been changed, but for starts that can be made anew.
        """
        with self._stream.watched(), torch.no_grad():
            numbers = [row.line for row in batch.rows]
            steps = [self._step(batch, numbers)]
            while len(steps) < batch.steps:
                numbers = [number + 1 for number in numbers]
                try:
                    steps.append(self._step(batch, numbers))
                except NetworkError:
                    batch.steps = len(steps)  # those were taken; the next batch begins with the one that failed
            return Turn(steps)

    def _step(self, batch: Batch, numbers: Sequence[int]) -> DeviceStep:
        """One step of a turn. numbers: of the lines that the rows are at."""
        rows = batch.rows
        lines = [row.program.lines[number] for row, number in zip(rows, numbers, strict=True)]
        function = self._function(batch, lines)
        batch.padding = function.rows - batch.network_rows
        memory, control = held = function.host_control()
        wanted = write(control, self.card, function.plan, rows, numbers, self._pools.scratch)
        began = self._stream.mark()
        if wanted.images:
            self._upload_images(wanted.images)
        function.upload(memory, history=wanted.history)
        function.launch()
        results = self._stream.download(function.results.tensor)
        collected = self._collect(function.control, wanted, batch.kind)
        ended = self._stream.mark()
        downloads = Downloads(results, *self._download(wanted, collected))
        aside = any(tensor is not None for tensor in collected)
        marks = began, ended, self._stream.mark(aside=True) if aside else ended
        return DeviceStep(batch, numbers, function.results, downloads, marks, lambda: function.let_go(held))

    def _function(self, batch: Batch, lines: Sequence[Line]) -> StepFunction:
        needed = plan_of(batch.network, lines)
        plan = next((plan for plan in self._plans if plan.covers(needed)), needed)
        rows = self._rows(batch.network, batch.network_rows)
        function = self._functions.get((plan, rows))
        # A capture takes far longer than a step: what was not captured when the model came runs without. Its first run
        # at each size may be slow, as libraries choose their algorithms in it.
        return function if function is not None else self._make(plan, rows)

    def _rows(self, network: str, network_rows: int) -> int:
        """How many rows the network gets, with the padding."""
        fixed = self._fixed_rows.get(network, 0)
        if network_rows <= fixed:
            return fixed
        return next(n for n in self._buckets if n >= network_rows) if self._captures is not None else network_rows

    def _make(self, plan: Plan, rows: int) -> StepFunction:
        kept = kept_predictions(self.card, plan.network, self.capacity)
        function = StepFunction(
            self.card, plan, rows, self._sessions[plan.network], self._pools, self._stream, kept=kept
        )
        self._functions[plan, rows] = function
        return function

    def _upload_images(self, images: Sequence[np.ndarray]) -> None:
        count, elements = len(images), self._pools.elements[SAMPLE]
        memory = self._stream.host_buffer(4 * count * elements)
        values = memory.view(torch.float32).view(count, elements)
        np.stack(images, out=values.numpy())
        self._stream.upload(values, self._pools.images[:count])

    def _collect(self, control: Control, wanted: Wanted, kind: str) -> _Collected:
        """What the host gets beside the results, in tensors that no later step writes to."""
        finals, places, shown = len(wanted.finals), len(wanted.places), len(wanted.predictions)
        chains = self._pools.chains
        pool = chains.place if chains is not None and kind == "metropolis" else self._pools.state[SAMPLE]
        return _Collected(
            self._pools.state[SAMPLE].index_select(0, control.collected[:finals]) if finals else None,
            pool.index_select(0, control.collected[finals : finals + places]) if places else None,
            self._pools.predictions[:shown].clone() if shown else None,
        )

    def _download(self, wanted: Wanted, collected: _Collected) -> tuple[Shown, tuple[Shown, Shown]]:
        finals, places, predictions = (
            None if tensor is None else self._stream.download(tensor, aside=True) for tensor in collected
        )
        return (wanted.finals, finals), ((wanted.places, places), (wanted.predictions, predictions))


class _Collected(NamedTuple):
    finals: Tensor | None
    places: Tensor | None
    predictions: Tensor | None
