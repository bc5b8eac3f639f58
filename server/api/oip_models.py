"""The models as clients of the Open Inference Protocol see them: one name, one thing that it does, its tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ..errors import InvalidArgument, NotFound
from ..names import check_name
from ..repository import Model, Repository
from .oip_wire import Tensor

SCORE_SUFFIX = ".score"


class Face(NamedTuple):
    """A model under one of its names: a sampler, or a scorer."""

    name: str
    model: Model
    scores: bool
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def version(self) -> int:
        return self.model.key.version


class Faces:
    """The faces of a repository's models, made anew when its models have changed."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._catalogue: Mapping[tuple[str, int], Model] | None = None
        self._all: tuple[Face, ...] = ()
        self._versions: dict[str, dict[int, Face]] = {}

    def all(self) -> tuple[Face, ...]:
        """All that there is, in the order of the repository: a model that samples and scores comes twice."""
        catalogue = self._repository.catalogue
        if catalogue is not self._catalogue:
            self._catalogue, self._all = catalogue, tuple(_faces_of(list(catalogue.values())))
            self._versions = {}
            for face in self._all:
                self._versions.setdefault(face.name, {})[face.version] = face
        return self._all

    def find(self, name: str, version: str) -> Face:
        """A model by name and version; an empty version is the newest.

        Raises:
            InvalidArgument: the version is not a number. NotFound: there is no such model or version.
        """
        check_name("model_name", name)
        check_name("version", version)
        if version and not (version.isascii() and version.isdigit() and len(version) <= 18 and int(version) > 0):
            raise InvalidArgument("version", f"must be empty or a number above 0, got {version!r}")
        faces = self.all()
        versions = self._versions.get(name)
        if versions is None:
            known = ", ".join(dict.fromkeys(face.name for face in faces))
            raise NotFound(f"Request for unknown model: {name!r} is not found; there are: {known}")
        face = versions.get(int(version) if version else max(versions))
        if face is None:
            there = ", ".join(map(str, versions))
            raise NotFound(f"Request for unknown model: {name!r} has no version {version}; there are: {there}")
        return face


def _faces_of(models: Sequence[Model]) -> Iterator[Face]:
    taken = {model.key.name for model in models}
    for model in models:
        name = model.key.name
        if model.samplers:
            yield _sampler(name, model)
            name += SCORE_SUFFIX
        # A model whose own name is NAME.score keeps it.
        if model.card.energy is not None and (name == model.key.name or name not in taken):
            yield _scorer(name, model)


def _sampler(name: str, model: Model) -> Face:
    inputs = [Tensor("SEED", "UINT64", (1,), accepted=("INT64",))]
    labels = model.card.labels
    if labels is not None:
        inputs.append(Tensor("LABEL", "INT64", (1,), optional=labels.null is not None))
    return Face(name, model, False, tuple(inputs), (Tensor("IMAGES", "FP32", model.card.image.shape),))


def _scorer(name: str, model: Model) -> Face:
    outputs = [Tensor("ENERGY", "FP64", (-1,))]
    if model.calibrations:
        outputs += [Tensor("P_VALUE", "FP64", (-1,)), Tensor("PERCENTILE", "FP64", (-1,))]
        outputs.append(Tensor("OUT_OF_DISTRIBUTION", "BOOL", (-1,)))
    return Face(name, model, True, (Tensor("IMAGES", "FP32", model.card.image.shape),), tuple(outputs))
