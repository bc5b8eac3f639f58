"""The application: the only place that builds objects. start -> serve -> drain -> stop."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import grpc
import msgspec
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from protos import fewstep_pb2 as pb
from protos import inference_pb2 as oip

from .access.gate import Gate, exposures
from .access.tls import Certificates
from .api.backlog import Backlog, open_calls, server_ids
from .api.calls import service_handler
from .api.door import Door
from .api.native import Models, Sampler, Scorer, Service
from .api.oip import GRPCInferenceService
from .backend import Backend, open_backends
from .config import Config, ConfigError
from .health import Health, Watchdog
from .loop.engine import Engine
from .loop.engines import Engines
from .observability.metrics import Metrics
from .observability.metrics_server import MetricsServer, Page
from .observability.status import StatusReader
from .observability.status_page import status_page
from .repository import Repository

if TYPE_CHECKING:
    from .observability.tracing import Tracing

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 20.0  # for TLS and HTTP/2 to be agreed on; a connection that says nothing is closed then
STOP_GRACE_SECONDS = 5.0  # for answers that are on their way; returns as soon as they have left


@dataclass
class App:
    """One server. `start` returns when it is ready; `stop` when nothing of it is left."""

    config: Config
    port: int = field(default=0, init=False)
    metrics_port: int = field(default=0, init=False)
    _serving: bool = field(default=False, init=False)

    async def start(self) -> None:
        """Load and warm up the models, then listen, then report SERVING.

        Raises:
            ConfigError: a bad repository, bundle, engine, certificate or tokens file, a port that is taken, or a
                package that an option needs and that is not installed.
        """
        config = self.config
        certificates = Certificates(config.security) if config.security.tls else None
        self._loop = asyncio.get_running_loop()
        self.died: asyncio.Future[BaseException] = self._loop.create_future()
        try:
            backends = open_backends(config)
        except ConfigError:  # names its option itself
            raise
        except (ValueError, ImportError) as error:
            raise ConfigError(f"engine: {error}") from error
        self._tracing = _open_tracing(config)
        self.engines = Engines([self._engine(backend) for backend in backends])
        self.metrics = Metrics(
            self.engines,
            config.engine,
            lambda name: self.repository.has(name.removesuffix(".score")),
            limits=config.limits,
            ready=lambda: not self.trouble(),
        )
        gate = Gate(config.security, self.metrics)
        self.repository = Repository(config, backends, self.engines)
        await asyncio.to_thread(self.repository.load_all)
        self._build_grpc(gate)
        self._watchdog = Watchdog(self.engines, self.health, config.stall_seconds)
        await self.health.set(False)
        self.port = self._bind(certificates)
        self._http = self._open_metrics_port()
        self.metrics_port = self._http.address[1]
        self._http.start()
        self.engines.start()
        await self.server.start()
        await self.health.set(True)
        self._serving = True
        self._watching = asyncio.ensure_future(self._watchdog.run())
        for exposure in exposures(config):
            log.warning("%s", exposure)
        log.info("serving on %s:%d, metrics on %d", config.host, self.port, self.metrics_port)

    def trouble(self) -> str:
        """Why no requests are taken; empty where they are. From any thread."""
        if not self._serving:
            return "starting"
        return self._watchdog.trouble() or ("" if self.engines.open else "draining")

    async def stop(self) -> bool:
        """Stop cleanly; the order is

        1. health says NOT_SERVING, new jobs are refused with UNAVAILABLE;
        2. rows in flight and jobs that wait finish, at most `drain_seconds` long;
        3. the engines end, with UNAVAILABLE for what is left; the last answers leave; the metrics port closes;
        4. the last spans go to the collector.

        Returns whether every job finished.
        """
        self._watching.cancel()
        await self.health.set(False)
        self.engines.close_admission()
        drained = await asyncio.to_thread(self.engines.drain, self.config.drain_seconds)
        if not drained:
            log.warning(
                "stopping with %d requests unfinished after %g s",
                self.engines.totals().requests_open,
                self.config.drain_seconds,
            )
        stopped = await asyncio.to_thread(self.engines.stop)
        await self.server.stop(STOP_GRACE_SECONDS)
        self._http.stop()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.stop)
        return drained and stopped

    def _engine(self, backend: Backend) -> Engine:
        return Engine(
            self.config.limits,
            name=f"engine {backend.device}",
            batching=self.config.batching,
            depth=backend.depth,
            turn=backend.turn,
            at_once_seconds=backend.at_once_seconds,
            on_step=lambda *step: self.metrics.observe_step(*step),
            on_death=self._on_death,
            traces=self._tracing is not None,
        )

    def _build_grpc(self, gate: Gate) -> None:
        """The gRPC server with all its services: fewstep's own, the Open Inference Protocol, health and reflection."""
        config = self.config
        servicers: dict[ServiceDescriptor, type[Service]] = {
            file.DESCRIPTOR.services_by_name[kind.__name__]: kind
            for file, kinds in ((pb, (Sampler, Scorer, Models)), (oip, (GRPCInferenceService,)))
            for kind in kinds
        }
        names = [service.full_name for service in servicers]
        self.health = Health(names)
        others = server_ids()
        self.server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", config.limits.max_message_bytes),
                ("grpc.max_send_message_length", config.limits.max_message_bytes),
                ("grpc.max_allowed_incoming_connections", config.limits.max_connections),
                ("grpc.server_handshake_timeout_ms", round(HANDSHAKE_SECONDS * 1000)),
                ("grpc.so_reuseport", 0),
                ("grpc.enable_channelz", 1),  # whose counts tell the backlog
                # Compressed messages are refused: gRPC would unpack one to any size and then look at the bound.
                ("grpc.compression_enabled_algorithms_bitset", 1 << grpc.Compression.NoCompression),
            ],
            interceptors=gate.interceptors,
            maximum_concurrent_rpcs=config.limits.max_concurrent_calls,
        )
        server_id = max(server_ids() - others)
        door = Door(Backlog(partial(open_calls, server_id)), self.metrics)
        self.server.add_generic_rpc_handlers([door])
        for service, kind in servicers.items():
            servicer = kind(self.repository, self.engines, self.metrics, config)
            door.add(service_handler(service, servicer, self.metrics, gate, self._tracing))
        health_pb2_grpc.add_HealthServicer_to_server(self.health.servicer, door)
        health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        # One pool for reflection to read: that of inference.proto is its own (see `make protos`).
        pool = DescriptorPool()
        for file in (pb, oip, health_pb2, reflection_pb2):
            pool.AddSerializedFile(file.DESCRIPTOR.serialized_pb)
        named = [*names, health_name, reflection.SERVICE_NAME]
        servicer = reflection.aio.ReflectionServicer(named, pool)  # type: ignore[attr-defined]  # not in the stubs
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, door)

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

    def _open_metrics_port(self) -> MetricsServer:
        config = self.config
        status = StatusReader(config, self.engines, self.repository, self.metrics.recent, self.trouble)
        pages = {
            "/": lambda: status_page(status.read()),
            "/status.json": lambda: Page("application/json", msgspec.json.encode(status.read())),
        }
        try:
            return MetricsServer(config.metrics_host, config.metrics_port, self.metrics.registry, pages)
        except OSError as error:
            address = f"{config.metrics_host}:{config.metrics_port}"
            raise ConfigError(f"metrics_port: cannot listen on {address}: {error}") from error

    def _on_death(self, error: BaseException) -> None:
        """An engine's thread ended by itself: the watchdog tells, and whoever runs the app stops it."""

        def tell() -> None:
            if not self.died.done():
                self.died.set_result(error)

        self._loop.call_soon_threadsafe(tell)


def _open_tracing(config: Config) -> Tracing | None:
    if config.otlp_endpoint is None:
        return None
    try:
        from .observability.tracing import Tracing
    except ImportError as error:
        raise ConfigError(f"otlp_endpoint: needs the extra otel: pip install -e '.[otel]' ({error})") from error
    return Tracing(config.otlp_endpoint, config.trace_ratio)
