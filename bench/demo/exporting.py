"""The demo's first step: checkpoints to bundles, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from models.machine import ROOT

from .errors import DemoError

EXPORT_TIMEOUT = 600.0


def export(checkpoints: Sequence[Path], repository: Path) -> str:
    """Export checkpoints into a repository, in a process of its own; bundles that are up to date are kept.

    Returns: what the exporter printed.

    Raises:
        DemoError: the exporter failed or took too long; ends with what it said.
    """
    command = [
        sys.executable,
        "-m",
        "export",
        *map(str, checkpoints),
        "--repository",
        os.path.relpath(repository, ROOT),
        "--jobs",
        str(min(4, os.cpu_count() or 1)),
    ]
    # In a session of its own: the exporter has processes of its own, which outlive it where it alone is killed.
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as exporter:
        try:
            output, errors = exporter.communicate(timeout=EXPORT_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(exporter.pid, signal.SIGKILL)
            raise DemoError(f"export did not end within {EXPORT_TIMEOUT:g} s") from None
        except BaseException:  # an interrupt from the keyboard does not reach that session
            os.killpg(exporter.pid, signal.SIGKILL)
            raise
    if exporter.returncode != 0:
        raise DemoError(f"export ended with code {exporter.returncode}:\n{errors.strip()[-2000:]}")
    return output
