"""A process that serves: started, waited for until it is ready, stopped by SIGTERM, never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, ClassVar, Self

from models.machine import ROOT

_LOG_TAIL = 2000
_MARK = "FEWSTEP_BENCH_PROCESS"


class ServerFailed(Exception):
    """The server did not start, or did not stop cleanly; the message ends with the end of its log."""


class ServingProcess(ABC):
    """A command that serves; a context manager.

    start_seconds: from its start to its being ready. log: where all that it prints goes.
    Leaving the context stops the server; where it was left without an error, a bad stop is an error.
    """

    clean_codes: ClassVar[tuple[int, ...]] = (0,)
    """Exit codes of a good stop."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        directory: Path = ROOT,
        start_timeout: float,
        stop_timeout: float,
    ) -> None:
        """name: what messages call it. environment: variables besides those of this process. directory: to run in."""
        self.log = log
        self.start_seconds = 0.0
        self._name = name
        self._command = command
        self._directory = directory
        # Whatever the server starts inherits the mark, and is found by it however far it moved away.
        self._mark = uuid.uuid4().hex
        self._environment = {**os.environ, **(environment or {}), _MARK: self._mark}
        self._start_timeout = start_timeout
        self._stop_timeout = stop_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._file: IO[bytes] | None = None

    @abstractmethod
    def _look_ready(self) -> bool:
        """Whether the server takes requests; asked again and again until it does."""

    def __enter__(self) -> Self:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        self._file = self.log.open("wb")
        self._process = subprocess.Popen(
            self._command,
            cwd=self._directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=subprocess.STDOUT,
        )
        try:
            self._wait_until_ready(started + self._start_timeout)
        except BaseException:
            self._kill()
            raise
        self.start_seconds = time.monotonic() - started
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            code = self.stop()
        except ServerFailed:
            if error is None:  # else the first error is the one to tell of
                raise
        else:
            if code not in self.clean_codes and error is None:
                raise ServerFailed(f"{self._name} ended with code {code}{self._end_of_log()}")

    @property
    def pid(self) -> int:
        """Its process id.

        Raises:
            ServerFailed: it was never started.
        """
        if self._process is None:
            raise ServerFailed(f"{self._name} was never started")
        return self._process.pid

    def family(self) -> list[int]:
        """The ids of its processes: the one started, and all that came of it (on Linux)."""
        return [self.pid, *(pid for pid in _marked(self._mark) if pid != self.pid)]

    def stop(self) -> int:
        """Send SIGTERM and wait for the server to drain; a second call only returns the code again.

        Returns: its exit code; 0 after a clean stop.

        Raises:
            ServerFailed: it was still running after the stop timeout, and was killed.
        """
        if self._process is None:
            raise ServerFailed(f"{self._name} was never started")
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(self._stop_timeout)
        except subprocess.TimeoutExpired:
            raise ServerFailed(
                f"{self._name} did not stop within {self._stop_timeout:g} s of SIGTERM{self._end_of_log()}"
            ) from None
        finally:
            self._kill()

    def _wait_until_ready(self, deadline: float) -> None:
        process = self._process
        while process is not None and process.poll() is None:
            if self._look_ready():
                return
            if time.monotonic() > deadline:
                raise ServerFailed(f"{self._name} was not ready within {self._start_timeout:g} s{self._end_of_log()}")
            time.sleep(0.02)
        code = process.returncode if process is not None else None
        raise ServerFailed(f"{self._name} ended with code {code} before it was ready{self._end_of_log()}")

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for pid in _marked(self._mark):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if self._file is not None:
            self._file.close()

    def _end_of_log(self) -> str:
        text = self.log.read_text(errors="replace").strip()[-_LOG_TAIL:]
        return f"; its log {self.log} ends with:\n{text}" if text else f"; its log {self.log} is empty"


def _marked(mark: str) -> list[int]:
    """The ids of the processes that were started with a mark in their environment; none where /proc is missing."""
    wanted, found = f"{_MARK}={mark}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = path.read_bytes().split(b"\0")
        except OSError:  # gone meanwhile, or another user's
            continue
        if wanted in variables:
            found.append(int(path.parent.name))
    return found
