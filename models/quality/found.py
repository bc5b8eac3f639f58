"""Everything that was measured, and where; one measurement can take the place of some models of an earlier one."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version

from ..machine import commit, cpu_name
from ..metrics.checkerboard import BoardQuality
from .measure import BoardDensity, RowQuality, ScaleQuality

PACKAGES = ("torch", "numpy", "scikit-learn", "diffusers")


@dataclass(frozen=True)
class Provenance:
    """Where and when some models, and the baselines beside them, were measured. seconds: what it took."""

    models: tuple[str, ...]
    commit: str
    date: str
    cpu: str
    versions: dict[str, str]
    seconds: float

    @classmethod
    def here(cls, models: Sequence[str], seconds: float) -> Provenance:
        """This machine, this code, now."""
        return cls(
            models=tuple(models),
            commit=commit(besides=["bench/results"]),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            cpu=cpu_name(),
            versions={"Python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
            seconds=round(seconds, 1),
        )

    def line(self) -> str:
        """Hardware, versions and commit in one line."""
        packages = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return f"{self.cpu}, {packages}, commit {self.commit}, {self.date}, {self.seconds:.0f} s"


@dataclass
class Found:
    """What was measured. count: samples of each row and seed; rows of other counts or seeds do not compare."""

    count: int
    seeds: tuple[int, ...]
    floor: float
    measured: list[Provenance] = field(default_factory=list)
    rows: list[RowQuality] = field(default_factory=list)
    detectors: list[ScaleQuality] = field(default_factory=list)
    near: list[ScaleQuality] = field(default_factory=list)
    layers: list[ScaleQuality] = field(default_factory=list)
    boards: dict[str, list[BoardQuality]] = field(default_factory=dict)
    densities: dict[str, list[BoardDensity]] = field(default_factory=dict)

    def foot(self) -> str:
        """One line a measurement, with its models where there are several."""
        if len(self.measured) == 1:
            return self.measured[0].line()
        return "\n".join(f"{', '.join(entry.models)}: {entry.line()}" for entry in self.measured)

    def updated(self, newer: Found) -> Found:
        """This, with the models and the baselines of a newer measurement in place of its own, in the order of names.

        Raises:
            ValueError: the two differ in the count of samples or in the seeds.
        """
        if (self.count, self.seeds) != (newer.count, newer.seeds):
            raise ValueError(
                f"what is there was measured with a count of {self.count} and {len(self.seeds)} seeds, "
                f"not {newer.count} and {len(newer.seeds)}"
            )
        fresh = {name for entry in newer.measured for name in entry.models}
        kept = [
            Provenance(left, entry.commit, entry.date, entry.cpu, entry.versions, entry.seconds)
            for entry in self.measured
            if (left := tuple(name for name in entry.models if name not in fresh))
        ]
        again = {entry.detector for entry in newer.detectors}
        rows = [row for row in self.rows if row.row.model not in fresh] + newer.rows
        detectors = [
            entry for entry in self.detectors if entry.detector not in again and entry.model not in fresh
        ] + newer.detectors
        layers = [entry for entry in self.layers if entry.model not in fresh] + newer.layers
        return Found(
            count=self.count,
            seeds=self.seeds,
            floor=newer.floor,
            measured=[*kept, *newer.measured],
            rows=sorted(rows, key=lambda row: row.row.model),
            detectors=sorted(detectors, key=lambda entry: (entry.model is None, entry.model or "")),
            near=newer.near or self.near,
            layers=sorted(layers, key=lambda entry: entry.detector),
            boards={**self.boards, **newer.boards},
            densities={**self.densities, **newer.densities},
        )
