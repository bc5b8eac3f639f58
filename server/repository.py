"""The model repository: bundles on disk, loaded into sessions and runners."""

from __future__ import annotations

import ctypes
import logging
import sys
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from export.runtime import EngineError
from models.bundle import MANIFEST, Bundle, BundleError, load_bundle, sha256_of
from models.calibrate import Calibration
from models.card import ModelCard
from models.samplers import available_refiners, available_samplers

from .backend import Backend
from .config import Config, ConfigError
from .errors import FailedPrecondition, NotFound
from .loop.engines import Engines
from .loop.protocols import Runner
from .loop.sizes import RowSizes
from .names import check_name
from .programs import ProgramCache
from .types import ModelKey

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A loaded model: what the API needs to know of it."""

    key: ModelKey
    bundle: Bundle
    calibrations: Mapping[str, Calibration]
    manifest_sha256: str
    samplers: tuple[str, ...] = field(init=False)
    refiners: tuple[str, ...] = field(init=False)
    programs: ProgramCache = field(init=False)
    sizes: RowSizes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "programs", ProgramCache(self.card))
        object.__setattr__(self, "sizes", RowSizes.of(self.card))
        object.__setattr__(self, "samplers", available_samplers(self.card))
        object.__setattr__(self, "refiners", available_refiners(self.card))

    @property
    def card(self) -> ModelCard:
        return self.bundle.card


def bundle_directories(root: Path) -> list[Path]:
    """The directories `NAME/VERSION` with a manifest, in order."""
    found = [d for d in root.glob("*/*") if d.name.isascii() and d.name.isdigit() and (d / MANIFEST).is_file()]
    return sorted(found, key=lambda d: (d.parent.name, int(d.name)))


def find_bundles(root: Path) -> list[Path]:
    """As `bundle_directories`, for a server that needs some.

    Raises:
        ConfigError: no such directory, or no bundle in it.
    """
    if not root.is_dir():
        raise ConfigError(
            f"repository {root} is not a directory; make one with: python -m export CHECKPOINT --repository {root}"
        )
    found = bundle_directories(root)
    if not found:
        raise ConfigError(f"repository {root} holds no bundle (NAME/VERSION/manifest.json)")
    return found


class Repository:
    """The models that are loaded, and how they come and go while the server runs.

    Loading and warming up happen in the calling thread, beside the engine; only a model that is
    ready takes the place of another, and what was begun on the old one ends on the old one.
    `load`, `unload` and `reload` wait for each other; `find` never waits.
    """

    def __init__(self, config: Config, backends: Sequence[Backend], engines: Engines) -> None:
        self._config = config
        self._backends = backends
        self._engines = engines
        self._changing = threading.Lock()
        self._models: Mapping[tuple[str, int], Model] = {}
        self._generation = 0

    @property
    def catalogue(self) -> Mapping[tuple[str, int], Model]:
        """The loaded models by name and version; another object as soon as one has come or gone."""
        return self._models

    @property
    def models(self) -> list[Model]:
        """The loaded models, by name and version."""
        return list(self._models.values())

    def has(self, name: str) -> bool:
        """Whether any version of a model is loaded."""
        return any(other == name for other, _ in self._models)

    def find(self, name: str, version: int) -> Model:
        """A model by name and version; version 0 is the newest.

        Raises:
            InvalidArgument: no model has so long a name. NotFound: there is none; lists what there is.
        """
        check_name("model", name)
        models = self._models
        versions = [number for other, number in models if other == name]
        if not versions:
            names = ", ".join(sorted({other for other, _ in models})) or "none"
            raise NotFound(f"model: no model {name!r}; there are: {names}")
        model = models.get((name, version or max(versions)))
        if model is None:
            raise NotFound(
                f"version: model {name} has no version {version}; there are: {', '.join(map(str, versions))}"
            )
        return model

    def load_all(self) -> None:
        """Load every bundle of the configured repository.

        Raises:
            ConfigError: no repository, or a bundle that cannot be used (names the file and the field).
        """
        with self._changing:
            for directory in find_bundles(self._config.repository):
                try:
                    self._install(directory)
                except (BundleError, EngineError) as error:
                    raise ConfigError(str(error)) from error

    def load(self, name: str, version: int) -> Model:
        """Load one bundle from disk, in the place of one with its name and version.

        Raises:
            InvalidArgument: no model has so long a name. NotFound: no such bundle on disk.
            FailedPrecondition: it cannot be used; what was loaded stays.
        """
        check_name("model", name)
        with self._changing:
            return self._try_install(self._directory(name, version))

    def unload(self, name: str, version: int) -> Model:
        """Take a model out of service; returns when the requests that it had are done.

        Raises:
            InvalidArgument: no model has so long a name. NotFound: it is not loaded.
        """
        with self._changing:
            model = self.find(name, version)
            self._remove(model)
            return model

    def unload_all(self, name: str) -> list[Model]:
        """Take all versions of a model out of service; returns when the requests that they had are done.

        Raises:
            InvalidArgument: no model has so long a name. NotFound: none is loaded.
        """
        with self._changing:
            self.find(name, 0)
            models = [model for model in self.models if model.key.name == name]
            for model in models:
                self._remove(model)
            return models

    def reload(self, name: str) -> list[Model]:
        """Bring one name up to date with the disk: new and changed versions are loaded, vanished ones unloaded.

        Returns the versions that are now loaded.

        Raises:
            InvalidArgument: no model has so long a name. NotFound: neither loaded nor on disk.
            FailedPrecondition: a bundle cannot be used; what was loaded stays.
        """
        check_name("model", name)
        with self._changing:
            found = {int(d.name): d for d in bundle_directories(self._config.repository) if d.parent.name == name}
            loaded = {version: model for (other, version), model in self._models.items() if other == name}
            if not found and not loaded:
                raise NotFound(f"model: no model {name!r}, loaded or on disk")
            for version, directory in sorted(found.items()):
                old = loaded.get(version)
                if old is None or not _is_as_loaded(directory, old):
                    self._try_install(directory)
            for version, model in loaded.items():
                if version not in found:
                    self._remove(model)
            return [model for (other, _), model in self._models.items() if other == name]

    # -- with the lock held ------------------------------------------------------------------------

    def _directory(self, name: str, version: int) -> Path:
        found = {(d.parent.name, int(d.name)): d for d in bundle_directories(self._config.repository)}
        versions = [number for other, number in found if other == name]
        directory = found.get((name, version or max(versions, default=0)))
        if directory is None:
            raise NotFound(_no_bundle(name, version, found))
        return directory

    def _try_install(self, directory: Path) -> Model:
        try:
            return self._install(directory)
        except (BundleError, EngineError) as error:
            raise FailedPrecondition(f"model: cannot load it, what was loaded stays: {error}") from error

    def _install(self, directory: Path) -> Model:
        """Make a bundle known to the engine when it is ready, and only then take the old one out.

        Raises:
            BundleError, EngineError: it cannot be used, whatever the reason.
        """
        try:
            model, runners = self._ready(directory)
        except (BundleError, EngineError):
            raise
        # Engines raise exceptions of any kind, and files may vanish or change while they are read.
        except Exception as error:
            raise BundleError(f"{directory}: {type(error).__name__}: {error}") from error
        place = (model.key.name, model.key.version)
        self._engines.add_model(model.key, runners)
        old = self._models.get(place)
        self._models = dict(sorted([*self._models.items(), (place, model)], key=lambda item: item[0]))
        if old is not None:
            self._engines.remove_model(old.key)
        _give_memory_back()
        log.info("loaded %s version %d: %s", *place, ", ".join(model.card.networks))
        return model

    def _ready(self, directory: Path) -> tuple[Model, list[Runner]]:
        """Load and warm up a bundle."""
        sha256 = sha256_of(directory / MANIFEST)
        bundle = load_bundle(directory)
        name, version = bundle.card.name, bundle.manifest.version
        if (directory.parent.name, directory.name) != (name, str(version)):
            raise BundleError(f"{directory} holds {name} version {version}")
        runners = []
        for backend in self._backends:
            runners.append(backend.runner(bundle, self._config.limits, self._fixed_rows(bundle)))
            runners[-1].warm_up()
        energy = bundle.card.energy
        scales = energy.scales if energy is not None else ()
        calibrations = {scale.name: Calibration(np.array(scale.calibration)) for scale in scales if scale.calibration}
        self._generation += 1
        return Model(ModelKey(name, version, self._generation), bundle, calibrations, sha256), runners

    def _fixed_rows(self, bundle: Bundle) -> dict[str, int]:
        """Networks to run at one padded batch size: in deterministic mode, all that were not measured to be batch
        invariant here."""
        if not self._config.deterministic:
            return {}
        return {
            name: self._config.limits.max_batch_rows
            for name, graph in bundle.manifest.graphs.items()
            if not (self._backends[0].invariance_known and graph.batch_invariant)
        }

    def _remove(self, model: Model) -> None:
        place = (model.key.name, model.key.version)
        self._models = {key: other for key, other in self._models.items() if key != place}
        self._engines.remove_model(model.key)
        _give_memory_back()
        log.info("unloaded %s version %d", *place)


def _no_bundle(name: str, version: int, found: Collection[tuple[str, int]]) -> str:
    """What a caller is told of a bundle that is not on disk, where those in `found` are."""
    versions = sorted(number for other, number in found if other == name)
    if versions:
        return f"version: no bundle of {name} version {version} on disk; there are: {', '.join(map(str, versions))}"
    names = ", ".join(sorted({other for other, _ in found})) or "none"
    asked = f"no bundle of {name!r} on disk" if name else "must name a bundle on disk, got an empty name"
    return f"model: {asked}; there are: {names}"


def _give_memory_back() -> None:
    """Return to the system what was freed.

    glibc keeps much of what models had: 150 MB after five reloads of the zoo, by a server that takes 390.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # not in every C library
        trim(0)


def _is_as_loaded(directory: Path, model: Model) -> bool:
    """Whether the manifest on disk is the one that was loaded; one that cannot be read is not."""
    try:
        return sha256_of(directory / MANIFEST) == model.manifest_sha256
    except OSError:
        return False
