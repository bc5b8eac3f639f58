"""One step on the device: gather, network, fused updates. It reads and writes tensors whose places are fixed alone, so
that a CUDA graph can hold the whole of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import kernels.ops  # noqa: F401  (makes the operators known to torch)
from export.runtime import EngineError
from export.runtime.device import DeviceSession
from models.card import ModelCard, TensorSpec
from models.program import SAMPLE, EnsembleUpdate, LangevinUpdate, start_draw

from ...errors import Internal
from ..protocols import NetworkError
from . import AHEAD
from .control import Control, Updates
from .plan import Plan, Target
from .pools import Pools
from .stream import Captures, Stream, out_of_memory

ops = torch.ops.fewstep

ENERGY = "energy"
FINITE, NORM, LEVEL = "nonfinite", "norm", "level"


class Results:
    """What a step tells of its rows, float32 `(names, rows)`, of which `row_of` gives the places.

    "energy": the network's first output, where that is one. By target: "nonfinite", 1 where
    the new state is not; "norm" of the gradient that the update used; "level", the energy at a chain's place (MALA).
    """

    def __init__(self, plan: Plan, rows: int, device: torch.device) -> None:
        names: list[str | tuple[Target, str]] = [ENERGY] if plan.energies else []
        for target in plan.targets:
            names.append((target, FINITE))
            if target.rule is not EnsembleUpdate:
                names.append((target, NORM))
            if target.rule not in (EnsembleUpdate, LangevinUpdate):
                names.append((target, LEVEL))
        self.row_of = {name: index for index, name in enumerate(names)}
        self.tensor = torch.zeros(len(names), rows, dtype=torch.float32, device=device)

    def put(self, name: str | tuple[Target, str], values: Tensor) -> None:
        self.tensor[self.row_of[name], : len(values)].copy_(values)


class StepFunction:
    """A plan for one number of network rows, `run` from its `control` to its `results`.

    Not to be called twice at a time.
    """

    def __init__(
        self,
        card: ModelCard,
        plan: Plan,
        rows: int,
        session: DeviceSession,
        pools: Pools,
        stream: Stream,
        *,
        kept: int,
    ) -> None:
        """kept: how many predictions a row may keep."""
        device = stream.device
        self.plan, self.rows = plan, rows
        self._card = card
        self._session = session
        self._pools = pools
        self._stream = stream
        self._kept = kept
        size = Control.size(card, plan, rows, kept)
        self._buffer = torch.zeros(size, dtype=torch.uint8, device=device)
        self.control = Control.on_device(card, plan, rows, kept, self._buffer)
        self.results = Results(plan, rows, device)
        self._inputs = self._network_inputs(device)
        self._start_draws = {
            name: torch.full((rows,), start_draw(index), dtype=torch.int64, device=device)
            for index, name in enumerate(card.register_shapes())
        }
        self._free: list[tuple[Tensor, Control]] = []
        self._replay: Callable[[], None] | None = None
        self.rest()

    def rest(self) -> None:
        """Make every row padding, so that a run touches no state but the scratch slot's."""
        control = self.control
        self._buffer.zero_()
        for column in (control.slots, control.collected, *(updates.slots for updates in control.updates.values())):
            column.fill_(self._pools.scratch)
        for column in (control.images, *(updates.shown for updates in control.updates.values())):
            column.fill_(-1)
        if control.kept is not None:
            control.kept.keep.fill_(-1)
        torch.arange(self.rows, out=control.null_rows)

    @property
    def captured(self) -> bool:
        """Whether `launch` is one launch of the whole step."""
        return self._replay is not None

    def capture(self, captures: Captures | None) -> None:
        """From now on `launch` is one launch of the whole step, where the device and the engine can do that.

        It is run once, as padding: what a first run sets up is there when the model is.

        Raises:
            EngineError: the network cannot be captured, e.g. as it waits for the device.
        """
        if self._session.capturable and captures is not None:
            try:
                self._replay = captures.capture(self.run)
            except (RuntimeError, NetworkError) as error:
                what = f"network {self.plan.network} for {self.rows} rows"
                raise EngineError(f"{what} cannot be captured in a graph: {error}") from error
        self.launch()
        # As many of the host's buffers as there are batches at a time: to pin memory takes long, and may wait for the
        # device. torch keeps what has been read.
        held = [self.host_control() for _ in range(AHEAD)]
        results = [self._stream.download(self.results.tensor) for _ in held]
        self._stream.mark().wait()
        del results
        for each in held:
            self.let_go(each)

    def launch(self) -> None:
        """Take the rows of `control` one line further; see `run`."""
        if self._replay is not None:
            self._replay()
        else:
            self.run()

    # -- the host's side --------------------------------------------------------------------------

    def host_control(self) -> tuple[Tensor, Control]:
        """A control to be filled and given to `upload`, and the memory that it lies in; given back by `let_go`."""
        if self._free:
            return self._free.pop()
        memory = self._stream.host_buffer(self._buffer.numel())
        return memory, Control.on_host(self._card, self.plan, self.rows, self._kept, memory.numpy().view(np.uint8))

    def upload(self, memory: Tensor, *, history: bool) -> None:
        """history: whether a row weights predictions of the steps before."""
        size = self._buffer.numel() if history else self.control.head
        self._stream.upload(memory[:size], self._buffer[:size])

    def let_go(self, held: tuple[Tensor, Control]) -> None:
        """The device has read it."""
        self._free.append(held)

    # -- the device's side ------------------------------------------------------------------------

    def run(self) -> None:
        """Take the rows of `control` one line further. Only gives work to the device; never waits for it.

        Raises:
            NetworkError: the network could not be run; no update was made.
        """
        control, pools = self.control, self._pools
        for name in self._card.register_shapes():
            is_sample = name == SAMPLE
            ops.gather(
                pools.state[name],
                control.slots,
                self._inputs.get(name),
                anchor=pools.anchor[name],
                modes=control.modes[name],
                accumulator=pools.accumulator if is_sample else None,
                stds=control.stds[name],
                images=pools.images if is_sample else None,
                image_rows=control.images if is_sample else None,
                seeds=control.seeds,
                samples=control.starts,
                draws=self._start_draws[name],
            )
        if "latent" in self._inputs:
            ops.normal_(self._inputs["latent"], control.seeds, control.samples, control.latents)
        try:
            outputs = self._session.run(self._inputs)
        except Exception as error:
            if isinstance(error, torch.AcceleratorError) and not out_of_memory(error):
                raise  # no fault of the network on these rows
            raise NetworkError(f"network {self.plan.network} failed: {error}") from error
        if self.plan.energies:
            self.results.put(ENERGY, outputs[0].flatten())
        for target, updates in control.updates.items():
            if target.rule is EnsembleUpdate:
                self._ensemble(target, updates, outputs)
            elif target.rule is LangevinUpdate:
                self._langevin(target, updates, outputs)
            else:
                self._metropolis(target, updates, outputs)

    def _ensemble(self, target: Target, updates: Updates, outputs: tuple[Tensor, ...]) -> None:
        pools, is_sample = self._pools, target.register == SAMPLE
        guided = self._card.labels is not None and self._card.labels.null is not None
        kept, history = self.control.kept, {}
        if is_sample and kept is not None:
            history = {f"history_{name}": column for name, column in kept._asdict().items()}
        nonfinite = ops.ensemble_step(
            pools.state[target.register],
            updates.slots,
            outputs[target.output],
            updates.coefficients,
            anchor=pools.anchor[target.register],
            null_rows=self.control.null_rows if guided else None,
            accumulator=pools.accumulator if is_sample else None,
            seeds=self.control.seeds,
            samples=updates.samples,
            draws=updates.draws,
            prediction=pools.predictions if is_sample else None,
            prediction_rows=updates.shown if is_sample else None,
            history_pool=pools.kept if history else None,
            **history,
        )
        self.results.put((target, FINITE), nonfinite)

    def _langevin(self, target: Target, updates: Updates, outputs: tuple[Tensor, ...]) -> None:
        norms, nonfinite = ops.langevin_step(
            self._pools.state[target.register],
            updates.slots,
            outputs[target.output],
            updates.coefficients,
            anchor=self._pools.anchor[target.register],
            seeds=self.control.seeds,
            samples=updates.samples,
            draws=updates.draws,
        )
        self.results.put((target, FINITE), nonfinite)
        self.results.put((target, NORM), norms)

    def _metropolis(self, target: Target, updates: Updates, outputs: tuple[Tensor, ...]) -> None:
        chains = self._pools.chains
        if chains is None:
            raise Internal(f"{self._card.name} has no pools for chains of MALA")
        levels, norms, nonfinite = ops.metropolis_step(
            self._pools.state[target.register],
            updates.slots,
            outputs[0].flatten(),
            outputs[target.output],
            updates.coefficients,
            place=chains.place,
            slope=chains.slope,
            level=chains.level,
            seeds=self.control.seeds,
            samples=updates.samples,
            draws=updates.draws,
            decision_samples=self.control.samples,
            decision_draws=updates.decisions,
        )
        self.results.put((target, FINITE), nonfinite)
        self.results.put((target, NORM), norms)
        self.results.put((target, LEVEL), levels)

    def _network_inputs(self, device: torch.device) -> dict[str, Tensor]:
        """The network's input tensors: those that the gather writes, and columns of the control."""
        inputs: dict[str, Tensor] = {}
        registers = self._card.register_shapes()
        for spec in self._card.networks[self.plan.network].inputs:
            if spec.name == "label":
                inputs[spec.name] = self.control.labels
            elif spec.name == "latent" or spec.name in registers:
                inputs[spec.name] = self._wide(spec, device)
            else:
                inputs[spec.name] = self.control.scalars[spec.name]
        return inputs

    def _wide(self, spec: TensorSpec, device: torch.device) -> Tensor:
        last = self._session.channels_last and len(spec.shape) == 3
        layout = torch.channels_last if last else torch.contiguous_format
        shape = (self.rows, *spec.shape)
        return torch.zeros(shape, dtype=self._session.dtype, device=device).contiguous(memory_format=layout)
