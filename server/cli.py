"""`python -m server --repository DIR`: serve a model repository until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

from .app import App
from .config import BATCHINGS, ClientLimits, Config, ConfigError, Limits, Security
from .observability import logs

SWITCH_SECONDS = 1e-4
"""How long one of Python's threads may keep the others waiting.

With Python's own 5 ms the engine's thread stands still between two steps for as long as the event loop has calls to
answer. 32 clients with requests of one step, 2 cores, client and server together, three rounds in turns: 555 requests/s
with 5 ms, 610 with 0.5 ms, 675 with 0.1 ms, no more below.
"""


def parse(arguments: list[str] | None = None) -> Config:
    """The configuration of a command line; exits with code 2 on a bad option."""
    parser = argparse.ArgumentParser(
        prog="python -m server", description="Serve few-step samplers and energies over gRPC."
    )
    defaults = Limits()
    parser.add_argument("--repository", type=Path, required=True, help="model repository, NAME/VERSION/manifest.json")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback only)")
    parser.add_argument("--port", type=int, default=8001, help="gRPC port, 0 for a free one (default: 8001)")
    parser.add_argument(
        "--metrics-port", type=int, default=8002, help="Prometheus port, 0 for a free one (default: 8002)"
    )
    parser.add_argument(
        "--metrics-host", default="127.0.0.1", help="address of the Prometheus port: plain HTTP (default: loopback)"
    )
    parser.add_argument("--engine", default="onnxruntime", help="onnxruntime (default), torch or tensorrt")
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda:N or several with commas, cuda: all, or auto (default): the first GPU the engine can use",
    )
    parser.add_argument("--threads", type=int, help="threads of the engine (default: all cores but one)")
    parser.add_argument(
        "--batching",
        default="step",
        choices=BATCHINGS,
        help="step (default), or request: whole requests in cohorts, as other servers do, to compare with",
    )
    parser.add_argument("--deterministic", action="store_true", help="the same bytes for the same seed in any company")
    parser.add_argument(
        "--drain-seconds", type=float, default=30.0, help="how long a stop waits for requests (default: 30)"
    )
    parser.add_argument(
        "--stall-seconds", type=float, default=60.0, help="a step longer than this is NOT_SERVING (default: 60)"
    )
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    parser.add_argument("--log-format", default="text", choices=logs.FORMATS, help="lines of text (default) or JSON")
    parser.add_argument(
        "--otlp-endpoint", metavar="URL", help="send traces to this OpenTelemetry collector, e.g. http://localhost:4317"
    )
    parser.add_argument(
        "--trace-ratio", type=float, default=1.0, help="share of calls to trace, where callers do not say (default: 1)"
    )
    limits = parser.add_argument_group("limits")
    for name in Limits.__dataclass_fields__:
        value = getattr(defaults, name)
        limits.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default: {value:,}")
    _add_security(parser)
    options = vars(parser.parse_args(arguments))
    try:
        client = _client_limits(options)
        names = [name for name in Security.__dataclass_fields__ if name != "client"]
        security = Security(client=client, **{name: options.pop(name) for name in names})
        bounds = Limits(**{name: options.pop(name) for name in Limits.__dataclass_fields__})
        if options["threads"] is None:
            del options["threads"]
        return Config(limits=bounds, security=security, **options)
    except ConfigError as error:
        parser.error(str(error))


def _add_security(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("security (server/SECURITY.md)")
    group.add_argument("--tls-certificate", type=Path, metavar="FILE", help="PEM chain of this server; turns TLS on")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM private key of that certificate")
    group.add_argument(
        "--tls-client-ca", type=Path, metavar="FILE", help="clients must show a certificate that this PEM CA signed"
    )
    group.add_argument("--tokens", type=Path, metavar="FILE", help="TOML file of the clients that may call")
    group.add_argument("--insecure", action="store_true", help="allow a --host that is not loopback without TLS")
    defaults = ClientLimits()
    group.add_argument(
        "--client-requests-per-second",
        type=float,
        default=defaults.requests_per_second,
        help="of one client (default: no bound)",
    )
    group.add_argument("--client-burst", type=float, help="requests of one client at once (default: one second's)")
    group.add_argument(
        "--client-rows",
        type=float,
        default=defaults.rows,
        help="rows of one client, in flight and waiting (default: no bound)",
    )


def _client_limits(options: dict[str, Any]) -> ClientLimits:
    """Takes the options out that it is made of."""
    try:
        return ClientLimits(**{name: options.pop(f"client_{name}") for name in ClientLimits.__dataclass_fields__})
    except ConfigError as error:
        raise ConfigError(f"client_{error}") from None


async def serve(config: Config) -> int:
    """Run a server until a signal; the exit code is 0 after a clean stop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    app = App(config)
    await app.start()
    print(f"ready grpc={config.host}:{app.port} metrics={config.metrics_host}:{app.metrics_port}", flush=True)
    stopping: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
    await asyncio.wait((stopping, app.died), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    drained = await app.stop()
    return 0 if drained and not app.died.done() else 1


def main() -> int:
    config = parse()
    sys.setswitchinterval(SWITCH_SECONDS)
    logs.configure(config.log_level, config.log_format)
    try:
        return asyncio.run(serve(config))
    except ConfigError as error:
        print(f"python -m server: {error}", file=sys.stderr)
        return 2
