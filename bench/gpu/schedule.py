"""Runs parts one after the other, so that all of them end within the time; one that fails leaves the others alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import msgspec

from .parts import Findings, Part, Setting

GRACE = 10.0
"""Seconds that a part may take beyond its own before it is ended: to stop and to write what it found."""

TAIL = 1500
"""Characters of a failed part's output that the report keeps."""

ROOT = Path(__file__).parents[2]


class PartFailed(Exception):
    """A part that did not come to its end; the message says why. findings: those that it had by then."""

    def __init__(self, message: str, findings: Findings | None = None) -> None:
        super().__init__(message)
        self.findings = findings


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a part: its findings, and why they are not all. seconds: that it took, of those it was given."""

    part: Part
    given: float
    seconds: float
    findings: Findings | None = None
    error: str | None = None


Launch = Callable[[Part, Setting], Findings]


def run_parts(
    parts: Sequence[Part],
    device: str,
    budget: float,
    output: Path,
    launch: Launch,
    *,
    clock: Callable[[], float] = perf_counter,
    report: Callable[[str], None] = lambda text: None,
) -> list[Outcome]:
    """Run every part. Each is given its share of what is left, so that what one does not use is the others'."""
    began = clock()
    outcomes: list[Outcome] = []
    for index, part in enumerate(parts):
        left = budget - (clock() - began)
        given = left * part.share / sum(other.share for other in parts[index:]) - GRACE
        if given <= 0:
            outcomes.append(Outcome(part, 0.0, 0.0, error="no time was left"))
            continue
        report(f"{part.title}: at most {given:.0f} s")
        started = clock()
        try:
            findings = launch(part, Setting(device, given, output))
        except PartFailed as error:
            outcomes.append(Outcome(part, given, clock() - started, error.findings, str(error)))
        else:
            outcomes.append(Outcome(part, given, clock() - started, findings))
    return outcomes


def launch_process(part: Part, setting: Setting) -> Findings:
    """Run a part in a process of its own: an error on a GPU is the end of the process that made it.

    Raises:
        PartFailed: it ended with an error, or had to be ended; with what it had found by then.
    """
    findings, log = setting.output / f".{part.name}.json", setting.output / f"{part.name}.log"
    findings.unlink(missing_ok=True)
    deadline = perf_counter() + setting.seconds
    command = [sys.executable, "-m", "bench.gpu.child", part.name, setting.device, str(deadline)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, str(setting.output.resolve()), str(findings.resolve())],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code: int | None = process.wait(setting.seconds + GRACE)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    try:
        found = msgspec.json.decode(findings.read_bytes(), type=Findings) if findings.exists() else None
    except msgspec.DecodeError as error:
        raise PartFailed(f"left findings that cannot be read: {error}{_tail(log)}") from error
    findings.unlink(missing_ok=True)
    if code is None:
        raise PartFailed(f"was ended after {setting.seconds + GRACE:.0f} s{_tail(log)}", found)
    if code != 0:
        raise PartFailed(f"ended with code {code}{_tail(log)}", found)
    if found is None:
        raise PartFailed(f"left no findings{_tail(log)}")
    log.unlink()
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the part's process and all that it started, which may outlive it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(log: Path) -> str:
    """The end of a part's output, on lines of its own."""
    text = log.read_text(errors="replace").strip()
    return f"\n{text[-TAIL:]}" if text else ""
