"""The processes that a profile asks: the server itself, one with probes, and the floors."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from server import grpc_core

from ..process import ServingProcess

_READY = re.compile(r"^ready grpc=(\S+)", re.MULTILINE)
START_TIMEOUT, STOP_TIMEOUT = 60.0, 40.0


class ProfiledProcess(ServingProcess):
    """A Python module that prints `ready grpc=HOST:PORT`. address: that, once started."""

    def __init__(self, name: str, module: str, arguments: Sequence[str], log: Path) -> None:
        command = [sys.executable, "-m", module, *arguments]
        environment = {grpc_core.VARIABLE: grpc_core.SERVER}  # as `python -m server` has it
        super().__init__(
            name, command, log, environment=environment, start_timeout=START_TIMEOUT, stop_timeout=STOP_TIMEOUT
        )
        self.address = ""

    def _look_ready(self) -> bool:
        ready = _READY.search(self.log.read_text(errors="replace"))
        if ready:
            self.address = ready[1]
        return ready is not None


class Floor(ProfiledProcess):
    """See `bench.profile.floor`. graph: to run, so many times a call; without one it is an echo."""

    clean_codes = (0, -15, 143)  # it has nothing to clean up

    def __init__(self, log: Path, graph: Path | None = None, runs: int = 0) -> None:
        arguments = [] if graph is None else [str(graph), str(runs)]
        super().__init__("the floor" if graph else "the echo", "bench.profile.floor", arguments, log)
