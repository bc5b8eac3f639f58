"""A server whose device is like a GPU, on the CPU: padded batches, steps given ahead, results that come late."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from export.runtime.device import open_device_runtime
from server import app
from server.backend import TURN, DeviceBackend
from server.config import Config
from server.loop.device import AHEAD
from server.loop.device.stream import HostStream

from .running import RunningServer, running_server


class LateStream(HostStream):
    """What was downloaded is garbage until a mark behind it has been waited for.

    go_on: a test that clears it holds the device in its running step.
    """

    def __init__(self) -> None:
        self.captured = 0
        self.go_on = threading.Event()
        self.go_on.set()
        self._late: list[Callable[[], object]] = []
        self._late_aside: list[Callable[[], object]] = []
        self._before: LateMark | None = None

    def download(self, source: torch.Tensor, *, aside: bool = False) -> torch.Tensor:
        arrived = source.clone()
        target = torch.full_like(arrived, torch.nan)
        (self._late_aside if aside else self._late).append(lambda: target.copy_(arrived))
        return target

    def mark(self, *, aside: bool = False) -> LateMark:
        """What is aside waits for the work before it, so that its mark is behind all."""
        self.go_on.wait()
        late, self._late = self._late, []
        self._before = LateMark(late, self._before)
        if not aside:
            return self._before
        late, self._late_aside = self._late_aside, []
        return LateMark(late, self._before)

    def captures(self) -> LateStream:
        return self

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        self.captured += 1
        function()
        return function


class LateMark:
    """before: one that has passed when this one has."""

    def __init__(self, late: list[Callable[[], object]], before: LateMark | None) -> None:
        self._late, self._before = late, before
        self.passed = False

    def wait(self) -> None:
        if self._before is not None:
            self._before.wait()
        self._before = None
        for arrive in self._late:
            arrive()
        self._late = []
        self.passed = True

    def seconds_since(self, earlier: LateMark) -> float:
        assert self.passed, "an event that has not been waited for has no time"
        return 0.001


@contextmanager
def server_ahead(repository: Path, *, devices: int = 1, **options: Any) -> Iterator[RunningServer]:
    """A server on torch with such devices; `server.late` are the devices."""
    streams = [LateStream() for _ in range(devices)]

    def open_backends(config: Config) -> list[DeviceBackend]:
        runtimes = [open_device_runtime("torch", stream.device) for stream in streams]
        return [DeviceBackend(*pair, depth=AHEAD, turn=TURN) for pair in zip(runtimes, streams, strict=True)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "open_backends", open_backends)
        with running_server(repository, engine="torch", **options) as server:
            server.late = streams  # type: ignore[attr-defined]
            yield server
