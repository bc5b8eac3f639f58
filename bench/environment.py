"""Where a number was measured: hardware, versions, commit, and what else the machine was doing."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("numpy", "grpcio", "protobuf", "onnxruntime", "torch", "scikit-learn")


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
        commit=_commit(),
        cpu=_cpu(),
        cores=os.cpu_count() or 1,
        usable_cores=_usable_cores(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpus=_gpus(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        packages=_versions(),
    )


def _output(*command: str) -> str | None:
    """What a command prints, or None where it is missing or fails: then there is nothing to tell."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _commit() -> str:
    commit = _output("git", "rev-parse", "HEAD")
    if commit is None:
        return "unknown"
    return commit + ("-dirty" if _output("git", "status", "--porcelain", "--untracked-files=no") else "")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _usable_cores() -> float:
    cores = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else min(cores, int(quota) / int(period))


def _gpus() -> tuple[str, ...]:
    listed = _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    return tuple(listed.splitlines()) if listed else ()


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
