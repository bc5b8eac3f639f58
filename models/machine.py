"""What a number or a checkpoint says of the machine and the code that it comes from."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def cpu_name() -> str:
    """The processor's name, or its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit(root: Path = ROOT, *, besides: Sequence[str] = ()) -> str:
    """The commit of the code under `root`, with `-dirty` where tracked files differ from it; "unknown" without git.

    besides: paths under `root` whose changes do not count.
    """
    found = command_output("git", "rev-parse", "HEAD", directory=root)
    if found is None:
        return "unknown"
    paths = [".", *(f":(exclude){path}" for path in besides)]
    changed = command_output("git", "status", "--porcelain", "--untracked-files=no", "--", *paths, directory=root)
    return found + ("-dirty" if changed else "")


def command_output(*command: str, directory: Path = ROOT) -> str | None:
    """What a command prints, or None where it is missing or fails: then there is nothing to tell."""
    try:
        found = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
