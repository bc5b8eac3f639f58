"""The model card: what a model is, apart from its files.

Checkpoints (`models.checkpoint`) and bundles (`models.bundle`) share it: exporting adds files, hashes and the parity
report, and changes nothing else.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}\Z")]
FileName = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
]  # no separator: a file cannot leave its bundle
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Positive = Annotated[int, Meta(ge=1)]


class Strict(Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a document: a field that it does not know is an error."""


class ImageSpec(Strict, frozen=True, kw_only=True):
    """Images are `(channels, height, width)`, float32, with values in `[low, high]`."""

    channels: Positive
    height: Positive
    width: Positive
    low: float = -1.0
    high: float = 1.0

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.channels, self.height, self.width)

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got [{self.low}, {self.high}]")


class LabelSpec(Strict, frozen=True, kw_only=True):
    """Labels `0..count-1`; `null` is the index of the unconditional label (guidance needs one)."""

    count: Positive
    null: int | None = None
    names: tuple[str, ...] = ()


class ScheduleSpec(Strict, frozen=True, kw_only=True):
    """A noise schedule by name (SPEC 0): `linear` uses the betas, `cosine` ignores them."""

    kind: Literal["linear", "cosine"] = "linear"
    steps: Positive = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02


class TensorSpec(Strict, frozen=True, kw_only=True):
    """One input or output of a network. `shape` is the shape of one row: the batch axis is left out.

    range: the values that a scalar input takes, for trying a graph out; without it they are network times.
    """

    name: str
    dtype: Literal["float32", "int64"] = "float32"
    shape: tuple[Positive, ...] = ()
    range: tuple[float, float] | None = None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


class ModuleSpec(Strict, frozen=True, kw_only=True):
    """A torch module: its architecture in `models.networks`, its configuration and its weights.

    A module made of others, such as the energy of a generated image, names them as `parts`, keyword -> module, and has
    no file of its own: what it is made of is stored once.
    """

    architecture: str
    config: dict[str, Any]
    weights: FileName | None = None
    sha256: Sha256 | None = None
    parameters: int
    parts: dict[str, str] = {}

    def __post_init__(self) -> None:
        if (self.weights is None) != (self.sha256 is None) or (self.weights is None) != bool(self.parts):
            raise ValueError("a module has either weights with their sha256, or parts")


class NetworkSpec(Strict, frozen=True, kw_only=True):
    """A graph that the server runs: a function of one module.

    `forward` is the module itself. `energy_gradient` is for a module that returns the energy, or a tuple
    that begins with it: the outputs are the energy, its gradients with respect to the inputs `gradients`,
    and the rest of the tuple.
    Input names have a fixed meaning: `sample` and the card's registers are the row's state, `label` its
    label, `latent` fresh Gaussian noise; every other input is a scalar that the program's line gives by that name.
    """

    module: str
    function: Literal["forward", "energy_gradient"] = "forward"
    gradients: tuple[str, ...] = ("sample",)
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        missing = set(self.gradients) - {tensor.name for tensor in self.inputs}
        if self.function == "energy_gradient" and (missing or not self.gradients):
            raise ValueError(f"gradients {sorted(self.gradients)} must be among the inputs, and at least one")


class SamplingSpec(Strict, frozen=True, kw_only=True):
    """How samples are drawn: the network, what it predicts, the schedule and the accepted requests.

    `grids` maps a number of steps to the network times that a model was trained for, largest first
    (VDRME); without grids any number of steps from `min_steps` to `max_steps` is accepted.
    `clean_end` sets abar = 1 at the end of a trained grid, so that the last step emits the clean
    prediction (SPEC 3).
    `parameters` are defaults of the method's own options (`SampleOptions.parameters`).
    """

    network: str
    prediction: Literal["eps", "x0", "v"] = "eps"
    schedule: ScheduleSpec = ScheduleSpec()
    samplers: tuple[str, ...]
    default_steps: Positive
    min_steps: Positive = 1
    max_steps: Positive = 100
    grids: dict[str, tuple[int, ...]] = {}
    clean_end: bool = True
    clip: bool = True
    parameters: dict[str, tuple[float, ...]] = {}

    def accepted_steps(self) -> tuple[int, ...]:
        """The accepted numbers of steps, in increasing order."""
        if self.grids:
            return tuple(sorted(int(steps) for steps in self.grids))
        return tuple(range(self.min_steps, self.max_steps + 1))

    def __post_init__(self) -> None:
        if not self.samplers:
            raise ValueError("samplers must name at least one sampler; the first is the default")
        for steps, grid in self.grids.items():
            if not steps.isdigit() or len(grid) != int(steps) + 1:
                raise ValueError(f"grids[{steps!r}] must hold {steps}+1 times, got {len(grid)}")
            if list(grid) != sorted(set(grid), reverse=True) or grid[-1] < 0 or grid[0] >= self.schedule.steps:
                raise ValueError(f"grids[{steps!r}] must decrease strictly within 0..{self.schedule.steps - 1}")
        if self.default_steps not in self.accepted_steps():
            raise ValueError(f"default_steps {self.default_steps} is not among the accepted steps")


class ScaleSpec(Strict, frozen=True, kw_only=True):
    """One noise scale of an energy: the network's time, the signal amplitude and the noise std there.

    A clean image is brought to the scale as `signal * image + noise * n` with seeded Gaussian n; that is the
    `method` "noised". Others (`models.samplers.SCORERS`) score in a way of their own, with `parameters`.
    `calibration` holds the sorted energies of held-out in-distribution images (empty: uncalibrated).
    """

    name: Name
    time: float
    signal: float = 1.0
    noise: float = 0.0
    method: Name = "noised"
    parameters: dict[str, float] = {}
    calibration: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if list(self.calibration) != sorted(self.calibration) or not all(map(math.isfinite, self.calibration)):
            raise ValueError(f"calibration of scale {self.name!r} must be finite and sorted")


class EnergySpec(Strict, frozen=True, kw_only=True):
    """How images are scored. Callers see `U = sign * scale * output`, low for in-distribution.

    The first scale is the default one.
    """

    network: str
    gradient_network: str | None = None
    sign: Literal[1, -1] = 1
    scale: float = 1.0
    scales: tuple[ScaleSpec, ...]
    false_alarm_rate: float = 0.05

    def __post_init__(self) -> None:
        if not self.scales:
            raise ValueError("scales must hold at least one scale; the first is the default")
        if not 0 < self.false_alarm_rate < 1:
            raise ValueError(f"false_alarm_rate must be within (0, 1), got {self.false_alarm_rate}")


class LangevinSpec(Strict, frozen=True, kw_only=True):
    """Defaults of Langevin sampling (SPEC 7): short-run chains are not mixed, so these belong to the model."""

    steps: Positive = 50
    step_size: float
    temperature: float = 1.0
    max_displacement: float | None = None
    box: bool = False


class ModelCard(Strict, frozen=True, kw_only=True):
    """What a model is, apart from its files.

    registers: tensors that a row holds besides its `sample`, by name, and their shapes. refiners: how it refines
    a caller's image (`models.samplers.REFINERS`), besides Langevin dynamics.
    """

    format: Literal[1] = 1
    name: Name
    family: Name
    description: str
    image: ImageSpec
    labels: LabelSpec | None = None
    modules: dict[str, ModuleSpec]
    networks: dict[str, NetworkSpec]
    sampling: SamplingSpec | None = None
    energy: EnergySpec | None = None
    langevin: LangevinSpec | None = None
    registers: dict[Name, tuple[Positive, ...]] = {}
    refiners: tuple[str, ...] = ()
    training: dict[str, Any]

    def register_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every register of a row, `sample` first."""
        return {"sample": self.image.shape, **self.registers}

    def __post_init__(self) -> None:
        taken = {"sample", "label", "latent"} & set(self.registers)
        if taken:
            raise ValueError(f"registers may not be named {', '.join(sorted(taken))}: these inputs have a meaning")
        for name, module in self.modules.items():
            for part in module.parts.values():
                if part not in self.modules or self.modules[part].parts:
                    raise ValueError(f"modules[{name!r}].parts: {part!r} is no module with weights of its own")
        for name, network in self.networks.items():
            if network.module not in self.modules:
                raise ValueError(
                    f"networks[{name!r}].module {network.module!r} is not among modules {sorted(self.modules)}"
                )
        wanted = [] if self.sampling is None else [("sampling.network", self.sampling.network)]
        if self.energy is not None:
            wanted.append(("energy.network", self.energy.network))
            if self.energy.gradient_network is not None:
                wanted.append(("energy.gradient_network", self.energy.gradient_network))
        for field, name in wanted:
            if name not in self.networks:
                raise ValueError(f"{field} {name!r} is not among networks {sorted(self.networks)}")
        if self.labels is not None and self.labels.names and len(self.labels.names) != self.labels.count:
            raise ValueError(f"labels.names holds {len(self.labels.names)} names for {self.labels.count} labels")
