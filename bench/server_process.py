"""A server of its own for a measurement, on free ports."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from models.machine import ROOT

from .process import ServerFailed, ServingProcess

__all__ = ["ServerFailed", "ServerProcess"]

_READY = re.compile(r"^ready grpc=(\S+) metrics=(\S+)$", re.MULTILINE)


class ServerProcess(ServingProcess):
    """A `python -m server` over one repository; a context manager.

    address, metrics_address: HOST:PORT, once started.
    """

    def __init__(
        self,
        repository: Path,
        log: Path,
        arguments: Sequence[str] = (),
        *,
        checkout: Path = ROOT,
        start_timeout: float = 60.0,
        stop_timeout: float = 40.0,
    ) -> None:
        """checkout: whose server it is."""
        self.repository = repository
        self.address = ""
        self.metrics_address = ""
        command = [sys.executable, "-m", "server", "--repository", str(repository.resolve())]
        command += ["--port", "0", "--metrics-port", "0", *arguments]
        super().__init__(
            "the server", command, log, directory=checkout, start_timeout=start_timeout, stop_timeout=stop_timeout
        )

    def _look_ready(self) -> bool:
        ready = _READY.search(self.log.read_text(errors="replace"))
        if ready:
            self.address, self.metrics_address = ready[1], ready[2]
        return ready is not None
