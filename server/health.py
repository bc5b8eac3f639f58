"""grpc.health.v1: SERVING from the end of warm-up until draining starts or the engine dies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio  # type: ignore[attr-defined]  # the stubs miss it

from .loop.engines import Engines

log = logging.getLogger(__name__)


class Watchdog:
    """Keeps health true to the engine: NOT_SERVING while its thread is dead or stuck in a step."""

    POLL_SECONDS = 0.5

    def __init__(self, engines: Engines, health: Health, stall_seconds: float) -> None:
        self._engines = engines
        self._health = health
        self._stall_seconds = stall_seconds

    def trouble(self) -> str:
        """What is wrong with the engines; empty when nothing is."""
        if not self._engines.alive:
            return "an engine's thread has ended"
        if self._engines.step_seconds > self._stall_seconds:
            return f"a step has been running for more than {self._stall_seconds:g} s"
        return ""

    async def run(self) -> None:
        """Watch until cancelled; says why in the log whenever health changes."""
        before = ""
        while True:
            await asyncio.sleep(self.POLL_SECONDS)
            now = self.trouble()
            if now != before:
                log.error("not serving: %s", now) if now else log.warning("serving again")
                await self._health.set(not now)
                before = now


class Health:
    """The health of the server as a whole (service name "") and of each of its services."""

    def __init__(self, services: Sequence[str]) -> None:
        self.servicer = aio.HealthServicer()
        self._services = ("", *services)

    async def set(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in self._services:
            await self.servicer.set(service, status)
