"""A server of its own for a measurement: started on free ports, stopped by SIGTERM, never left behind."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from models.machine import ROOT

_READY = re.compile(r"^ready grpc=(\S+) metrics=(\S+)$", re.MULTILINE)
_LOG_TAIL = 2000


class ServerFailed(Exception):
    """The server did not start, or did not stop cleanly; the message ends with the end of its log."""


class ServerProcess:
    """A `python -m server` over one repository; a context manager.

    address, metrics_address: HOST:PORT, once started. start_seconds: from its start to its being ready.
    log: where all that it prints goes.
    Leaving the context stops the server; where it was left without an error, a bad stop is an error.
    """

    def __init__(
        self,
        repository: Path,
        log: Path,
        arguments: Sequence[str] = (),
        *,
        start_timeout: float = 60.0,
        stop_timeout: float = 40.0,
    ) -> None:
        self.repository = repository
        self.log = log
        self.address = ""
        self.metrics_address = ""
        self.start_seconds = 0.0
        self._arguments = arguments
        self._start_timeout = start_timeout
        self._stop_timeout = stop_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "server", "--repository", str(self.repository.resolve())]
        command += ["--port", "0", "--metrics-port", "0", *self._arguments]
        started = time.monotonic()
        self._file = self.log.open("wb")
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=self._file, stderr=subprocess.STDOUT
        )
        try:
            self.address, self.metrics_address = self._wait_until_ready(started + self._start_timeout)
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
            if code != 0 and error is None:
                raise ServerFailed(f"the server ended with code {code}{self._end_of_log()}")

    @property
    def pid(self) -> int:
        """Its process id.

        Raises:
            ServerFailed: it was never started.
        """
        if self._process is None:
            raise ServerFailed("the server was never started")
        return self._process.pid

    def stop(self) -> int:
        """Send SIGTERM and wait for the server to drain; a second call only returns the code again.

        Returns: its exit code; 0 after a clean stop.

        Raises:
            ServerFailed: it was still running after the stop timeout, and was killed.
        """
        if self._process is None:
            raise ServerFailed("the server was never started")
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(self._stop_timeout)
        except subprocess.TimeoutExpired:
            raise ServerFailed(
                f"the server did not stop within {self._stop_timeout:g} s of SIGTERM{self._end_of_log()}"
            ) from None
        finally:
            self._kill()

    def _wait_until_ready(self, deadline: float) -> tuple[str, str]:
        process = self._process
        while process is not None and process.poll() is None:
            ready = _READY.search(self.log.read_text(errors="replace"))
            if ready:
                return ready[1], ready[2]
            if time.monotonic() > deadline:
                raise ServerFailed(f"the server was not ready within {self._start_timeout:g} s{self._end_of_log()}")
            time.sleep(0.02)
        code = process.returncode if process is not None else None
        raise ServerFailed(f"the server ended with code {code} before it was ready{self._end_of_log()}")

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._file is not None:
            self._file.close()

    def _end_of_log(self) -> str:
        text = self.log.read_text(errors="replace").strip()[-_LOG_TAIL:]
        return f"; its log {self.log} ends with:\n{text}" if text else f"; its log {self.log} is empty"
