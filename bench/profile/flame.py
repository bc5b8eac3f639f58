"""A flame picture of a running server by py-spy: which of its Python code holds the interpreter, as an SVG."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

RATE = 400
"""Samples a second."""

TITLE = "fewstep, one client, stacks that hold the interpreter"


class FlameError(Exception):
    """No picture could be made; the message says why."""


def py_spy() -> str | None:
    """The program, of this environment or on the path; None where there is none."""
    return shutil.which("py-spy", path=sysconfig.get_path("scripts")) or shutil.which("py-spy")


def record(pid: int, path: Path, seconds: float, work: Callable[[], None]) -> None:
    """Draw a process while `work` is done again and again for some seconds.

    Only stacks that hold the interpreter's lock count: threads that wait and the engine's own time are left out.

    Raises:
        FlameError: py-spy is not installed, or may not look into the process.
    """
    program = py_spy()
    if program is None:
        raise FlameError("py-spy is not installed: pip install -e '.[bench]'")
    command = [program, "record", "--pid", str(pid), "--gil", "--threads", "--rate", str(RATE), "--output", str(path)]
    process = subprocess.Popen(
        [*command, "--duration", f"{max(1, round(seconds))}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        while process.poll() is None:
            work()
        output, _ = process.communicate()
    finally:
        process.kill()
        process.wait()
    if process.returncode != 0:
        raise FlameError(f"py-spy ended with code {process.returncode}: {' '.join(output.split())[-300:]}")
    _set_title(path)


def _set_title(path: Path) -> None:
    """Say what is drawn: py-spy writes its own command line there, with paths of this machine."""
    text, titles = re.subn(r'(<text id="title"[^>]*>)[^<]*', rf"\g<1>{TITLE}", path.read_text())
    if titles != 1:
        raise FlameError(f"{path} is not drawn as expected: {titles} titles")
    path.write_text(text)
