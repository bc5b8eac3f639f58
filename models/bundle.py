"""The bundle: what is deployed, and the schema of its manifest.

A bundle is a directory `REPOSITORY/NAME/VERSION/` that holds `manifest.json`, one ONNX file per
network (a large one with its weights in a file of their own) and the float32 weights (safetensors) of
the modules they were traced from.
The manifest is validated on load and every file must match its SHA-256, so a truncated copy or an
edited weight file is refused before the server says that it is ready.

The descriptive part (`ModelCard`) is shared with checkpoints (`models.checkpoint`): exporting adds
files, hashes and the parity report, and changes nothing else.
"""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

MANIFEST = "manifest.json"
T = TypeVar("T")

Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}\Z")]
FileName = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
]  # no separator: a file cannot leave its bundle
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Positive = Annotated[int, Meta(ge=1)]
Precision = Literal["float32", "float16", "bfloat16"]


class BundleError(ValueError):
    """A bundle or checkpoint that cannot be used; the message names the file and the field."""


class _Strict(Struct, frozen=True, forbid_unknown_fields=True):
    pass


class ImageSpec(_Strict, frozen=True, kw_only=True):
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


class LabelSpec(_Strict, frozen=True, kw_only=True):
    """Labels `0..count-1`; `null` is the index of the unconditional label (guidance needs one)."""

    count: Positive
    null: int | None = None
    names: tuple[str, ...] = ()


class ScheduleSpec(_Strict, frozen=True, kw_only=True):
    """A noise schedule by name (SPEC 0): `linear` uses the betas, `cosine` ignores them."""

    kind: Literal["linear", "cosine"] = "linear"
    steps: Positive = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02


class TensorSpec(_Strict, frozen=True, kw_only=True):
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


class ModuleSpec(_Strict, frozen=True, kw_only=True):
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


class NetworkSpec(_Strict, frozen=True, kw_only=True):
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


class SamplingSpec(_Strict, frozen=True, kw_only=True):
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


class ScaleSpec(_Strict, frozen=True, kw_only=True):
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


class EnergySpec(_Strict, frozen=True, kw_only=True):
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


class LangevinSpec(_Strict, frozen=True, kw_only=True):
    """Defaults of Langevin sampling (SPEC 7): short-run chains are not mixed, so these belong to the model."""

    steps: Positive = 50
    step_size: float
    temperature: float = 1.0
    max_displacement: float | None = None
    box: bool = False


class ModelCard(_Strict, frozen=True, kw_only=True):
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


class ParityCheck(_Strict, frozen=True, kw_only=True):
    """Measured difference between the graph and torch for one output at one batch size and input.

    `error` is max|graph - torch| / max(1, max|torch|).
    """

    output: str
    rows: int
    seed: int
    error: float


class GraphFile(_Strict, frozen=True, kw_only=True):
    """The exported form of one network, with what was measured when it was exported.

    `precision` is what its products are computed in, see `export.precision`; inputs and outputs are float32.
    `batch_invariant` says whether the engine returned the same bytes for a row alone and in batches.
    `weights` is the safetensors file that holds a large graph's weights, as ONNX's external data.
    """

    file: FileName
    sha256: Sha256
    weights: FileName | None = None
    weights_sha256: Sha256 | None = None
    precision: Precision = "float32"
    opset: int
    bound: float
    parity: tuple[ParityCheck, ...]
    batch_invariant: bool

    @property
    def worst(self) -> float:
        return max(check.error for check in self.parity)

    def __post_init__(self) -> None:
        if (self.weights is None) != (self.weights_sha256 is None):
            raise ValueError("weights and weights_sha256 go together")


class Manifest(_Strict, frozen=True, kw_only=True):
    """`manifest.json`: the model card, one graph per network, and how the export was made."""

    card: ModelCard
    version: Positive
    graphs: dict[str, GraphFile]
    exported: dict[str, Any]

    def __post_init__(self) -> None:
        if set(self.graphs) != set(self.card.networks):
            raise ValueError(f"graphs {sorted(self.graphs)} do not match card.networks {sorted(self.card.networks)}")


class Bundle(Struct, frozen=True):
    """A manifest whose files were found on disk with the recorded hashes."""

    directory: Path
    manifest: Manifest

    @property
    def card(self) -> ModelCard:
        return self.manifest.card

    def graph_path(self, network: str) -> Path:
        return self.directory / self.manifest.graphs[network].file

    def graph_weights_path(self, network: str) -> Path | None:
        """Where the weights of a large graph are; None where the graph holds them itself."""
        weights = self.manifest.graphs[network].weights
        return None if weights is None else self.directory / weights

    def graph_files(self) -> dict[Path, str]:
        """The files of all graphs, and their SHA-256."""
        graphs = self.manifest.graphs.values()
        files = [(graph.file, graph.sha256) for graph in graphs]
        files += [(graph.weights, graph.weights_sha256) for graph in graphs if graph.weights and graph.weights_sha256]
        return {self.directory / name: sha256 for name, sha256 in files}


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def decode(path: Path, kind: type[T]) -> T:
    """Read a JSON file into a schema class.

    Raises:
        BundleError: the file is missing, is not JSON, or a field is wrong; names file and field.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        raise BundleError(f"{path}: no such file") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise BundleError(f"{path}: {error}") from error


def encode(path: Path, value: Struct) -> None:
    """Write a schema object as indented JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")


def verify_file(path: Path, sha256: str) -> None:
    """Check that a file is there and is the recorded one.

    Raises:
        BundleError: it is missing or its hash differs.
    """
    if not path.is_file():
        raise BundleError(f"{path}: no such file")
    found = sha256_of(path)
    if found != sha256:
        raise BundleError(f"{path}: SHA-256 is {found}, the manifest says {sha256}")


def weight_files(directory: Path, card: ModelCard) -> dict[Path, str]:
    """The weight files of a card's modules below `directory`, and their SHA-256."""
    return {
        directory / module.weights: module.sha256
        for module in card.modules.values()
        if module.weights is not None and module.sha256 is not None
    }


def load_bundle(directory: Path) -> Bundle:
    """Load a bundle and verify every file of it.

    Raises:
        BundleError: manifest missing or invalid, a file missing or different, or a link that leaves the bundle.
    """
    _confine(directory, directory / MANIFEST)
    manifest = decode(directory / MANIFEST, Manifest)
    bundle = Bundle(directory, manifest)
    for path, sha256 in (bundle.graph_files() | weight_files(directory, manifest.card)).items():
        _confine(directory, path)
        verify_file(path, sha256)
    return bundle


def _confine(directory: Path, path: Path) -> None:
    """Names hold no separator, so only a symbolic link can lead out; those within the bundle are as good as files.

    The bundle itself may be reached through links: they belong to whoever set up the repository.
    """
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(directory)):
        raise BundleError(f"{path}: is a link that leaves the bundle")
