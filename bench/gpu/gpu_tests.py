"""The tests marked `gpu`; those of the kernels are, where a GPU is (`tests/kernels/conftest.py`)."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

from ..end_to_end.result import Goal
from .parts import Findings, Setting

TESTS = Path(__file__).parents[2] / "tests"
ON_GPU = re.compile(r"\bmark\.gpu\b|\bDEVICE\b")
"""What the files have whose tests run on a GPU. Others are not even collected: that takes all that they import."""

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
    """The files with tests that run on a GPU."""
    return sorted(path for path in root.rglob("test_*.py") if ON_GPU.search(path.read_text()))


def run_tests(setting: Setting, files: list[Path] | None = None) -> Findings:
    """Run them within the time.

    Raises:
        RuntimeError: none was run, or pytest could not go on. TimeoutExpired: they took too long.
    """
    found = setting.output / "tests.xml"
    files = gpu_test_files() if files is None else files
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "--tb=short", f"--junitxml={found}", *map(str, files)]
    # A machine with a GPU may lack a plugin that the project's settings name, or have versions that warn of themselves.
    command += ["-o", "addopts=", "-o", "filterwarnings=default"]
    if find_spec("xdist") is not None:  # the kernels' tests compile, each for itself
        command += ["-n", str(WORKERS)]
    try:
        code = subprocess.run(command, cwd=TESTS.parent, timeout=setting.seconds, check=False).returncode
        if code not in (0, 1):  # some failed
            raise RuntimeError(f"pytest ended with code {code}, in {len(files)} files")
        tests = read_junit(found)
    finally:
        found.unlink(missing_ok=True)
    if not tests.passed and not tests.failures:
        raise RuntimeError(f"no test was run, {tests.skipped} were skipped")
    lines = [f"{tests.passed} passed, {len(tests.failures)} failed, {tests.skipped} skipped."]
    lines += ["", *(f"- failed: `{name}`" for name in tests.failures)] if tests.failures else []
    goal = Goal(FAILED.name, float(len(tests.failures)), FAILED.bound)
    return Findings(asdict(tests), (goal,), "\n".join(lines))


def read_junit(path: Path) -> Tests:
    """Count pytest's report."""
    cases = list(ElementTree.parse(path).iter("testcase"))  # noqa: S314  # written by our own pytest just now
    failures = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    names = tuple(f"{case.get('classname')}.{case.get('name')}" for case in failures)
    return Tests(len(cases) - len(failures) - len(skipped), len(skipped), names)
