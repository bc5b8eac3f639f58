"""Where a number was measured: hardware, versions, commit, and what else the machine was doing."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from models.machine import command_output, commit, cpu_name

PACKAGES = (
    "numpy", "grpcio", "protobuf", "onnx", "onnxruntime", "torch", "triton", "tensorrt", "diffusers", "scikit-learn",
)  # fmt: skip


@dataclass(frozen=True)
class Environment:
    """The surroundings of a measurement.

    cores: of the machine. usable_cores: those that this process may use, by affinity and by its container's quota.
    memory_bytes: of the machine. load_average: runnable processes over 1, 5 and 15 minutes.
    commit: with `-dirty` where tracked files differ from it.
    """

    time: str
    commit: str
    cpu: str
    cores: int
    usable_cores: float
    memory_bytes: int
    gpus: tuple[str, ...]
    system: str
    python: str
    packages: dict[str, str]
    load_average: tuple[float, float, float] = field(default_factory=os.getloadavg)

    def line(self) -> str:
        """The surroundings in one line, for the foot of a picture."""
        load = ", ".join(f"{value:.1f}" for value in self.load_average)
        where = ", ".join((self.cpu, *self.gpus))
        commit, dirty, _ = self.commit.partition("-dirty")
        versions = f"Python {self.python}, commit {commit[:10]}{dirty}"
        return f"{where}, {self.usable_cores:g} cores, load average {load}, {versions}"


def describe_environment() -> Environment:
    """Look at the machine as it is now."""
    return Environment(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit(),
        cpu=cpu_name(),
        cores=os.cpu_count() or 1,
        usable_cores=_usable_cores(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpus=_gpus(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        packages=_versions(),
    )


def stolen_seconds() -> float:
    """Core seconds since the machine started in which it wanted to run and its host ran others; 0 where not told."""
    try:
        _, *ticks = Path("/proc/stat").read_text().partition("\n")[0].split()
        return int(ticks[7]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def _usable_cores() -> float:
    cores = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else min(cores, int(quota) / int(period))


def _gpus() -> tuple[str, ...]:
    listed = command_output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    return tuple(listed.splitlines()) if listed else ()


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
