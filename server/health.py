"""grpc.health.v1: SERVING from the end of warm-up until draining starts or the engine dies."""

from __future__ import annotations

from collections.abc import Sequence

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio  # type: ignore[attr-defined]  # the stubs miss it

ServingStatus = health_pb2.HealthCheckResponse.ServingStatus


class Health:
    """The health of the server as a whole (service name "") and of each of its services."""

    def __init__(self, services: Sequence[str]) -> None:
        self.servicer = aio.HealthServicer()
        self._services = ("", *services)

    async def set(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in self._services:
            await self.servicer.set(service, status)
