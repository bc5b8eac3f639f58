"""The tests marked `gpu`; those of the kernels are, where a GPU is (`tests/kernels/conftest.py`)."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

from ..end_to_end.result import Goal
from .parts import Findings, Setting

TESTS = Path(__file__).parents[2] / "tests"
MARKED = re.compile(r"\bpytest\.mark\.gpu\b")
"""What the files have whose tests run on a GPU. Others are not even collected: that takes all that they import."""

PYTEST = "import signal, sys, pytest; signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(pytest.main())"
"""pytest that can be interrupted, as what is started in the background of a shell cannot."""

STOP_SECONDS = 8.0
"""In which tests that took too long are to stop, and pytest to write what was found until then."""

WORKERS = 8
"""Where pytest-xdist is installed. Each has torch on the GPU, about half a gigabyte."""

FAILED = Goal("GPU tests that fail", None, 0.0)


@dataclass(frozen=True, slots=True)
class Tests:
    """How many ended how; failures: names."""

    passed: int
    skipped: int
    failures: tuple[str, ...]


def gpu_test_files(root: Path = TESTS) -> list[Path]:
    """The files with tests that run on a GPU; the kernels' are marked where one is, see `tests/kernels/conftest.py`."""
    marked = {path for path in root.rglob("test_*.py") if MARKED.search(path.read_text())}
    return sorted(marked.union((root / "kernels").glob("test_*.py")))


def run_tests(setting: Setting, files: list[Path] | None = None) -> Findings:
    """Run them within the time.

    Raises:
        RuntimeError: none was run, or pytest could not go on.
        TimeoutExpired: they took too long; what those told that ended is kept.
    """
    found = setting.output / "tests.xml"
    files = gpu_test_files() if files is None else files
    command = [sys.executable, "-c", PYTEST, "-m", "gpu", "--tb=short", f"--junitxml={found}", *map(str, files)]
    # A machine with a GPU may lack a plugin that the project's settings name, or have versions that warn of themselves.
    command += ["-o", "addopts=", "-o", "filterwarnings=default"]
    if find_spec("xdist") is not None:  # the kernels' tests compile, each for itself
        command += ["-n", str(WORKERS)]
    try:
        code = _run(command, setting.seconds)
        if code is None and found.exists():
            setting.keep(_findings(read_junit(found), all_ran=False))
        if code is None:
            raise subprocess.TimeoutExpired(command, setting.seconds)
        if code not in (0, 1):  # some failed
            raise RuntimeError(f"pytest ended with code {code}, in {len(files)} files")
        tests = read_junit(found)
    finally:
        found.unlink(missing_ok=True)
    if not tests.passed and not tests.failures:
        raise RuntimeError(f"no test was run, {tests.skipped} were skipped")
    return _findings(tests, all_ran=True)


def _run(command: list[str], seconds: float) -> int | None:
    """The exit code; None where the tests had to be stopped. pytest has written then what it found, if it could."""
    process = subprocess.Popen(command, cwd=TESTS.parent)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        return None
    finally:
        process.kill()
        process.wait()


def _findings(tests: Tests, *, all_ran: bool) -> Findings:
    lines = [f"{tests.passed} passed, {len(tests.failures)} failed, {tests.skipped} skipped."]
    lines += [] if all_ran else ["The others were not run: no time was left."]
    lines += ["", *(f"- failed: `{name}`" for name in tests.failures)] if tests.failures else []
    # That none of some fails does not say that none fails.
    value = float(len(tests.failures)) if all_ran or tests.failures else None
    return Findings(asdict(tests), (Goal(FAILED.name, value, FAILED.bound),), "\n".join(lines))


def read_junit(path: Path) -> Tests:
    """Count pytest's report."""
    root = ElementTree.parse(path)  # noqa: S314  # written by our own pytest just now
    cases = [case for case in root.iter("testcase") if case.get("name")]  # a test that was stopped has none
    failures = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    names = tuple(f"{case.get('classname')}.{case.get('name')}" for case in failures)
    return Tests(len(cases) - len(failures) - len(skipped), len(skipped), names)
