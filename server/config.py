"""The server's configuration: built once from the command line and passed down."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20


class ConfigError(ValueError):
    """A configuration that cannot be served; the message names the option."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what the server takes on.

    max_batch_rows: network rows in one forward. max_rows_in_flight: rows with a slot, per model.
    state_bytes: memory of all slots of one model. max_waiting_rows, max_waiting_bytes: queued rows
    over all models. max_rows_per_request, max_message_bytes: one request. step_seconds: a batch is
    cut to what is predicted to run in this time, so that a new row never waits longer for its turn.
    """

    max_batch_rows: int = 64
    max_rows_in_flight: int = 256
    state_bytes: int = 256 * MIB
    max_waiting_rows: int = 4096
    max_waiting_bytes: int = 256 * MIB
    max_rows_per_request: int = 1024
    max_message_bytes: int = 128 * MIB
    max_concurrent_calls: int = 4096
    step_seconds: float = 0.1

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not value > 0:
                raise ConfigError(f"{name} must be positive, got {value}")


@dataclass(frozen=True, slots=True)
class Config:
    """What to serve and where. Port 0 takes a free port; threads are the engine's own."""

    repository: Path
    host: str = "127.0.0.1"
    port: int = 8001
    metrics_port: int = 8002
    engine: str = "onnxruntime"
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    deterministic: bool = False
    drain_seconds: float = 30.0
    log_level: str = "info"
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for name in ("port", "metrics_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise ConfigError(f"{name} must be within 0..65535, got {getattr(self, name)}")
        if self.threads < 1:
            raise ConfigError(f"threads must be at least 1, got {self.threads}")
        if not self.drain_seconds >= 0:
            raise ConfigError(f"drain_seconds must not be negative, got {self.drain_seconds}")
