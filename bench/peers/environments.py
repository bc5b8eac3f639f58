"""Environments of the peers: `.venv-peers/NAME`, each with the pinned packages of `requirements/NAME.txt`.

They are apart because the peers want versions that neither this project nor each other can live with.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.machine import ROOT

ENVIRONMENTS = ROOT / ".venv-peers"
REQUIREMENTS = Path(__file__).parent / "requirements"
MARKER = "installed"
INSTALL_TIMEOUT = 1800.0
_TAIL = 2000
_TELL = """
import sys, sysconfig
print("%d.%d" % sys.version_info[:2])
print(sysconfig.get_config_var("LIBDIR") if sysconfig.get_config_var("Py_ENABLE_SHARED") else "")
"""


class PeerEnvironmentError(Exception):
    """An environment that is missing or cannot be made; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Python:
    """An interpreter. library: the folder of its shared library, None where it has none."""

    path: Path
    version: str
    library: Path | None


@dataclass(frozen=True, slots=True)
class Needs:
    """What a peer asks of an interpreter. versions: in the order of preference. shared: a shared libpython."""

    versions: tuple[str, ...] = ("3.12", "3.11")
    shared: bool = False


NEEDS = {
    # Triton's Python backend is built for Python 3.12 and loads libpython; pytriton 0.7 failed here with 3.11.
    "triton": Needs(("3.12",), shared=True),
}


def names() -> tuple[str, ...]:
    """The environments that there are requirements for."""
    return tuple(sorted(path.stem for path in REQUIREMENTS.glob("*.txt")))


def directory_of(name: str) -> Path:
    return ENVIRONMENTS / name


def python_of(name: str) -> Path:
    """The interpreter of an environment.

    Raises:
        PeerEnvironmentError: it is not installed, or from other requirements.
    """
    if not is_installed(name):
        raise PeerEnvironmentError(f"{name} is not installed; run: python -m bench peers install {name}")
    return directory_of(name) / "bin" / "python"


def is_installed(name: str) -> bool:
    """Whether the environment is complete and has what the requirements say now."""
    marker = directory_of(name) / MARKER
    return marker.is_file() and marker.read_text() == _fingerprint(name)


def library_path(python: Path) -> dict[str, str]:
    """What the environment variables must say for an embedding program to find this Python's shared library."""
    found = _describe(python)
    if found is None or found.library is None:
        return {}
    given = os.environ.get("LD_LIBRARY_PATH")
    return {"LD_LIBRARY_PATH": f"{found.library}:{given}" if given else str(found.library)}


def version_of(name: str, package: str) -> str:
    """The version of a package in an environment."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return _run([str(python_of(name)), "-c", code], timeout=60).strip()


def install(name: str, report: Callable[[str], None] = lambda text: None) -> bool:
    """Make an environment, or leave it as it is where it is up to date.

    Returns: whether anything was done.

    Raises:
        PeerEnvironmentError: no such peer, no fitting Python, or its packages cannot be installed.
    """
    if name not in names():
        raise PeerEnvironmentError(f"no environment {name!r}; there are {', '.join(names())}")
    if is_installed(name):
        return False
    python = find_python(NEEDS.get(name, Needs()), name)
    directory = directory_of(name)
    shutil.rmtree(directory, ignore_errors=True)
    report(f"{name}: Python {python.version}")
    _run([str(python.path), "-m", "venv", str(directory)], timeout=300)
    report(f"{name}: packages")
    requirements = REQUIREMENTS / f"{name}.txt"
    command = [str(directory / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*command, "--no-deps", "--requirement", str(requirements)], timeout=INSTALL_TIMEOUT)
    (directory / MARKER).write_text(_fingerprint(name))
    return True


def find_python(needs: Needs, name: str, candidates: Iterator[Path] | None = None) -> Python:
    """The first interpreter of this machine that fits, by the order of preference.

    candidates: where to look; by default this interpreter, those on the path, and pyenv's.

    Raises:
        PeerEnvironmentError: there is none; says what was looked for and found.
    """
    found = [python for path in candidates or _candidates() if (python := _describe(path)) is not None]
    for version in needs.versions:
        for python in found:
            if python.version == version and (python.library is not None or not needs.shared):
                return python
    wanted = " or ".join(needs.versions) + (" with a shared library" if needs.shared else "")
    seen = ", ".join(sorted({python.version for python in found})) or "none"
    raise PeerEnvironmentError(
        f"{name} needs Python {wanted}, and there is none on the path or in pyenv (found: {seen})"
    )


def _candidates() -> Iterator[Path]:
    yield Path(sys.executable)
    for minor in ("3.12", "3.11", "3.10"):
        found = shutil.which(f"python{minor}")
        if found is not None:
            yield Path(found)
    # pyenv's shims on the path refuse to run versions that are not selected: its interpreters themselves do.
    if shutil.which("pyenv") is not None:
        try:
            root = Path(_run(["pyenv", "root"], timeout=10).strip())
        except PeerEnvironmentError:
            return
        yield from sorted(root.glob("versions/*/bin/python"))


def _describe(path: Path) -> Python | None:
    """What an interpreter is; None for one that does not run, such as a shim of a version that is not selected."""
    try:
        version, library = _run([str(path), "-c", _TELL], timeout=30).splitlines()
    except (PeerEnvironmentError, ValueError):
        return None
    return Python(path, version, Path(library) if library else None)


def _fingerprint(name: str) -> str:
    return hashlib.sha256((REQUIREMENTS / f"{name}.txt").read_bytes()).hexdigest()


def _run(command: Sequence[str], timeout: float) -> str:
    """What a command prints.

    Raises:
        PeerEnvironmentError: it is missing, fails or takes too long.
    """
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerEnvironmentError(str(error)) from None
    if done.returncode != 0:
        raise PeerEnvironmentError(f"{' '.join(command)} ended with code {done.returncode}:\n{done.stderr[-_TAIL:]}")
    return done.stdout
