"""The model repository: bundles on disk, loaded into sessions and runners."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from export.runtime import Runtime
from models.bundle import Bundle, BundleError, ModelCard, ScaleSpec, load_bundle
from models.calibrate import Calibration
from models.program import Program
from models.samplers import SampleOptions, available_samplers, compile_sample, compile_score

from .config import Config, ConfigError
from .errors import NotFound
from .loop.runner import ModelRunner
from .types import ModelKey

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A loaded model: what the API needs to know of it. Compiled programs are kept: they are pure."""

    key: ModelKey
    bundle: Bundle
    calibrations: Mapping[str, Calibration]
    samplers: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "samplers", available_samplers(self.card))

    @property
    def card(self) -> ModelCard:
        return self.bundle.card


@lru_cache(maxsize=256)
def sample_program(model: Model, options: SampleOptions) -> Program:
    """The program of a sample request (cached: a service asks for the same thing again and again)."""
    return compile_sample(model.card, options)


@lru_cache(maxsize=256)
def score_program(model: Model, scale: ScaleSpec) -> Program:
    """The program of a score at one noise scale."""
    return compile_score(model.card, scale)


def find_bundles(root: Path) -> list[Path]:
    """The bundle directories `NAME/VERSION` under a repository, in order.

    Raises:
        ConfigError: no such directory, or no bundle in it.
    """
    if not root.is_dir():
        raise ConfigError(
            f"repository {root} is not a directory; make one with: python -m export CHECKPOINT --repository {root}"
        )
    found = [d for d in root.glob("*/*") if d.name.isdigit() and (d / "manifest.json").is_file()]
    if not found:
        raise ConfigError(f"repository {root} holds no bundle (NAME/VERSION/manifest.json)")
    return sorted(found, key=lambda d: (d.parent.name, int(d.name)))


class Repository:
    """The models that are loaded."""

    def __init__(self, models: Mapping[ModelKey, Model]) -> None:
        self._models = dict(sorted(models.items()))

    @property
    def models(self) -> list[Model]:
        """The loaded models, by name and version."""
        return list(self._models.values())

    def find(self, name: str, version: int) -> Model:
        """A model by name and version; version 0 is the newest.

        Raises:
            NotFound: there is none; lists what there is.
        """
        versions = [key.version for key in self._models if key.name == name]
        if not versions:
            names = ", ".join(sorted({key.name for key in self._models}))
            raise NotFound(f"model: no model {name!r}; there are: {names}")
        model = self._models.get(ModelKey(name, version or max(versions)))
        if model is None:
            raise NotFound(
                f"version: model {name} has no version {version}; there are: {', '.join(map(str, versions))}"
            )
        return model


def load(config: Config, runtime: Runtime) -> tuple[Repository, dict[ModelKey, ModelRunner]]:
    """Load every bundle of the configured repository, and warm its networks up.

    Raises:
        ConfigError: no repository, or a bundle that cannot be used (names the file and the field).
    """
    models, runners = {}, {}
    for directory in find_bundles(config.repository):
        try:
            bundle = load_bundle(directory)
        except BundleError as error:
            raise ConfigError(str(error)) from error
        key = ModelKey(bundle.card.name, bundle.manifest.version)
        if (directory.parent.name, directory.name) != (key.name, str(key.version)):
            raise ConfigError(f"{directory} holds {key.name} version {key.version}")
        sessions = {name: runtime.load(bundle, name) for name in bundle.card.networks}
        runner = ModelRunner(bundle, sessions, config.limits, fixed_rows=_fixed_rows(config, bundle))
        runner.warm_up()
        energy = bundle.card.energy
        scales = energy.scales if energy is not None else ()
        calibrations = {scale.name: Calibration(np.array(scale.calibration)) for scale in scales if scale.calibration}
        models[key] = Model(key, bundle, calibrations)
        runners[key] = runner
        log.info("loaded %s version %d: %s", key.name, key.version, ", ".join(sessions))
    return Repository(models), runners


def _fixed_rows(config: Config, bundle: Bundle) -> dict[str, int]:
    """Networks to run at one padded batch size: in deterministic mode, all that were not measured
    to be batch invariant with this engine (measurements are made with ONNX Runtime)."""
    if not config.deterministic:
        return {}
    measured = config.engine == "onnxruntime"
    return {
        name: config.limits.max_batch_rows
        for name, graph in bundle.manifest.graphs.items()
        if not (measured and graph.batch_invariant)
    }
