"""The application: the only place that builds objects. start -> serve -> drain -> stop."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2
from prometheus_client import start_http_server

from export.runtime import open_runtime
from protos import fewstep_pb2 as pb
from protos import inference_pb2 as oip

from .api.calls import service_handler
from .api.native import Models, Sampler, Scorer, Service
from .api.oip import GRPCInferenceService
from .config import Config, ConfigError
from .health import Health, Watchdog
from .loop.engine import Engine
from .metrics import Metrics
from .repository import Repository
from .security import Gate, exposures
from .tls import Certificates

log = logging.getLogger(__name__)

STOP_GRACE_SECONDS = 5.0  # for answers that are on their way; returns as soon as they have left


@dataclass
class App:
    """One server. `start` returns when it is ready; `stop` when nothing of it is left."""

    config: Config
    port: int = field(default=0, init=False)
    metrics_port: int = field(default=0, init=False)

    async def start(self) -> None:
        """Load and warm up the models, then listen, then report SERVING.

        Raises:
            ConfigError: a bad repository, bundle, engine, certificate or tokens file, or a port that is taken.
        """
        config = self.config
        certificates = Certificates(config.security) if config.security.tls else None
        self._loop = asyncio.get_running_loop()
        self.died: asyncio.Future[BaseException] = self._loop.create_future()
        try:
            runtime = open_runtime(config.engine, config.threads)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"engine: {error}") from error
        self.engine = Engine(
            config.limits, on_step=lambda *step: self.metrics.observe_step(*step), on_death=self._on_death
        )
        self.metrics = Metrics(
            self.engine.batcher, config.engine, lambda name: self.repository.has(name.removesuffix(".score"))
        )
        gate = Gate(config.security, self.metrics)
        self.repository = Repository(config, runtime, self.engine)
        await asyncio.to_thread(self.repository.load_all)
        servicers: dict[ServiceDescriptor, type[Service]] = {
            file.DESCRIPTOR.services_by_name[kind.__name__]: kind
            for file, kinds in ((pb, (Sampler, Scorer, Models)), (oip, (GRPCInferenceService,)))
            for kind in kinds
        }
        names = [service.full_name for service in servicers]
        self.health = Health(names)
        self.server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", config.limits.max_message_bytes),
                ("grpc.max_send_message_length", config.limits.max_message_bytes),
                ("grpc.so_reuseport", 0),
                # Compressed messages are refused: gRPC would unpack one to any size and then look at the bound.
                ("grpc.compression_enabled_algorithms_bitset", 1 << grpc.Compression.NoCompression),
            ],
            interceptors=gate.interceptors,
            maximum_concurrent_rpcs=config.limits.max_concurrent_calls,
        )
        self.server.add_generic_rpc_handlers(
            [
                service_handler(service, kind(self.repository, self.engine, self.metrics, config), self.metrics, gate)
                for service, kind in servicers.items()
            ]
        )
        health_pb2_grpc.add_HealthServicer_to_server(self.health.servicer, self.server)
        health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        # One pool for reflection to read: that of inference.proto is its own (see `make protos`).
        pool = DescriptorPool()
        for file in (pb, oip, health_pb2, reflection_pb2):
            pool.AddSerializedFile(file.DESCRIPTOR.serialized_pb)
        reflection.enable_server_reflection([*names, health_name, reflection.SERVICE_NAME], self.server, pool)
        await self.health.set(False)
        self.port = self._bind(certificates)
        self._http, self._http_thread = self._serve_metrics()
        self.metrics_port = self._http.server_port
        self.engine.start()
        await self.server.start()
        await self.health.set(True)
        self._watching = asyncio.ensure_future(Watchdog(self.engine, self.health, config.stall_seconds).run())
        for exposure in exposures(config):
            log.warning("%s", exposure)
        log.info("serving on %s:%d, metrics on %d", config.host, self.port, self.metrics_port)

    async def stop(self) -> bool:
        """Stop cleanly; the order is

        1. health says NOT_SERVING, new jobs are refused with UNAVAILABLE;
        2. rows in flight and jobs that wait finish, at most `drain_seconds` long;
        3. the engine ends, with UNAVAILABLE for what is left; the last answers leave; the metrics page closes.

        Returns whether every job finished.
        """
        self._watching.cancel()
        await self.health.set(False)
        self.engine.close_admission()
        drained = await asyncio.to_thread(self.engine.drain, self.config.drain_seconds)
        if not drained:
            log.warning(
                "stopping with %d requests unfinished after %g s", self.engine.batcher.jobs, self.config.drain_seconds
            )
        stopped = await asyncio.to_thread(self.engine.stop)
        await self.server.stop(STOP_GRACE_SECONDS)
        self._http.shutdown()
        self._http.server_close()
        self._http_thread.join()
        return drained and stopped

    def _bind(self, certificates: Certificates | None) -> int:
        host = self.config.host.removeprefix("[").removesuffix("]")
        address = f"[{host}]:{self.config.port}" if ":" in host else f"{host}:{self.config.port}"
        try:
            if certificates is None:
                port = self.server.add_insecure_port(address)
            else:
                port = self.server.add_secure_port(address, certificates.credentials())
        except RuntimeError as error:
            raise ConfigError(f"port: cannot listen on {address}: {error}") from error
        if not port:
            raise ConfigError(f"port: cannot listen on {address}")
        return int(port)

    def _serve_metrics(self):  # type: ignore[no-untyped-def]
        host, port = self.config.metrics_host, self.config.metrics_port
        try:
            return start_http_server(port, host, registry=self.metrics.registry)
        except OSError as error:
            raise ConfigError(f"metrics_port: cannot listen on {host}:{port}: {error}") from error

    def _on_death(self, error: BaseException) -> None:
        """The engine's thread ended by itself: the watchdog tells, and whoever runs the app stops it."""

        def tell() -> None:
            if not self.died.done():
                self.died.set_result(error)

        self._loop.call_soon_threadsafe(tell)
