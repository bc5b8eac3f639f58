"""The server's configuration: built once from the command line and passed down."""

from __future__ import annotations

import ipaddress
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

MIB = 1 << 20


class ConfigError(ValueError):
    """A configuration that cannot be served; the message names the option."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what the server takes on.

    max_batch_rows: network rows in one forward. max_rows_in_flight: slots, per model; as many predictions may be kept.
    state_bytes: memory of all that the rows in flight of one model hold. max_waiting_rows, max_waiting_bytes: queued
    rows over all models. max_rows_per_request, max_message_bytes: one request. max_connections: open at once, further
    ones are closed at once. max_concurrent_calls: over all connections. step_seconds: a batch is cut to what is
    predicted to run in this time, so that a new row hardly waits longer for its turn. turn_seconds: on a GPU, how long
    the steps may take together that rows take at once while nobody else waits.
    """

    max_batch_rows: int = 64
    max_rows_in_flight: int = 256
    state_bytes: int = 256 * MIB
    max_waiting_rows: int = 4096
    max_waiting_bytes: int = 256 * MIB
    max_rows_per_request: int = 1024
    max_message_bytes: int = 128 * MIB
    max_connections: int = 1000
    max_concurrent_calls: int = 4096
    step_seconds: float = 0.02
    turn_seconds: float = 0.001

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ConfigError(f"{name} must be positive and finite, got {value}")


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """What one client may ask for; `inf` sets no bound of its own, and those of `Limits` hold.

    requests_per_second: in the long run. burst: requests at once, by default those of one second; it bounds nothing
    where the rate is `inf`.
    rows: rows of its requests that have not ended, waiting ones included.
    """

    requests_per_second: float = math.inf
    burst: float | None = None
    rows: float = math.inf

    def __post_init__(self) -> None:
        if not self.requests_per_second > 0:
            raise ConfigError(f"requests_per_second must be positive, got {self.requests_per_second}")
        if self.burst is not None and not self.burst >= 1:
            raise ConfigError(f"burst must be at least 1, got {self.burst}")
        if not self.rows >= 1:
            raise ConfigError(f"rows must be at least 1, got {self.rows}")


@dataclass(frozen=True, slots=True)
class Security:
    """Who may connect, and how (server/SECURITY.md).

    tls_certificate, tls_key: PEM files; the two together turn TLS on. tls_client_ca: PEM file; with it, clients
    must show a certificate that it signed. tokens: TOML file of the clients that may call. insecure: allows
    a host that is not loopback without TLS. client: the limits of each client that the tokens file sets none for,
    and without such a file of each address.
    """

    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    tokens: Path | None = None
    insecure: bool = False
    client: ClientLimits = field(default_factory=ClientLimits)

    def __post_init__(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            given, missing = ("certificate", "key") if self.tls_key is None else ("key", "certificate")
            raise ConfigError(f"tls_{given} needs tls_{missing} beside it")
        if self.tls_client_ca is not None and not self.tls:
            raise ConfigError("tls_client_ca needs tls_certificate and tls_key beside it")
        if self.client.burst is not None and self.client.requests_per_second == math.inf:
            # What is gone of a burst comes back at this rate: at once.
            raise ConfigError("client_burst bounds nothing without client_requests_per_second beside it")

    @property
    def tls(self) -> bool:
        return self.tls_certificate is not None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address; a name other than localhost is taken to be reachable."""
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return host == "localhost"


def _check_endpoint(url: str) -> None:
    try:
        parts = urlsplit(url)
        complete = parts.scheme in ("http", "https") and parts.hostname and parts.port
    except ValueError:
        complete = False
    if not complete:
        raise ConfigError(f"otlp_endpoint must be http://HOST:PORT or https://HOST:PORT, got {url!r}")


BATCHINGS = ("step", "request")


@dataclass(frozen=True, slots=True)
class Config:
    """What to serve and where. Port 0 takes a free port; threads are the engine's own.

    device: `cpu`, `cuda:N`, several of these with commas between them, `cuda` for all GPUs, or `auto` for the first GPU
    where the engine can use one.
    batching: by `step`, or by `request` for comparison (`server.loop.cohorts`).
    otlp_endpoint: the collector that traces go to, http://HOST:PORT or https://HOST:PORT; none without it.
    trace_ratio: the share of calls that are traced, of those whose caller does not say.
    """

    repository: Path
    host: str = "127.0.0.1"
    port: int = 8001
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 8002
    engine: str = "onnxruntime"
    device: str = "auto"
    threads: int = field(default_factory=lambda: max(1, (os.cpu_count() or 1) - 1))  # one core is gRPC's
    batching: str = "step"
    deterministic: bool = False
    drain_seconds: float = 30.0
    stall_seconds: float = 60.0
    log_level: str = "info"
    log_format: str = "text"
    otlp_endpoint: str | None = None
    trace_ratio: float = 1.0
    limits: Limits = field(default_factory=Limits)
    security: Security = field(default_factory=Security)

    def __post_init__(self) -> None:
        if not (is_loopback(self.host) or self.security.tls or self.security.insecure):
            raise ConfigError(
                f"host {self.host!r} is not loopback: give tls_certificate and tls_key,"
                " or insecure to let everything travel in the clear"
            )
        for name in ("port", "metrics_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise ConfigError(f"{name} must be within 0..65535, got {getattr(self, name)}")
        if self.threads < 1:
            raise ConfigError(f"threads must be at least 1, got {self.threads}")
        if not re.fullmatch(r"auto|cpu|cuda|cuda:\d{1,3}(,cuda:\d{1,3})*", self.device):
            raise ConfigError(f"device must be auto, cpu, cuda or cuda:N[,cuda:N...], got {self.device!r}")
        if len(set(self.device.split(","))) < self.device.count(",") + 1:
            raise ConfigError(f"device names one twice: {self.device!r}")
        if self.batching not in BATCHINGS:
            raise ConfigError(f"batching must be one of {', '.join(BATCHINGS)}, got {self.batching!r}")
        if not 0 <= self.trace_ratio <= 1:
            raise ConfigError(f"trace_ratio must be within 0..1, got {self.trace_ratio}")
        if self.otlp_endpoint is not None:
            _check_endpoint(self.otlp_endpoint)
        if not self.drain_seconds >= 0:
            raise ConfigError(f"drain_seconds must not be negative, got {self.drain_seconds}")
