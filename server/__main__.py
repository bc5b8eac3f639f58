"""`python -m server --repository DIR`: serve a model repository until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

from . import logs
from .app import App
from .config import Config, ConfigError, Limits


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
    parser.add_argument("--engine", default="onnxruntime", help="onnxruntime (default) or torch")
    parser.add_argument("--threads", type=int, help="threads of the engine (default: one a core)")
    parser.add_argument("--deterministic", action="store_true", help="the same bytes for the same seed in any company")
    parser.add_argument(
        "--drain-seconds", type=float, default=30.0, help="how long a stop waits for requests (default: 30)"
    )
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    limits = parser.add_argument_group("limits")
    for name in Limits.__dataclass_fields__:
        value = getattr(defaults, name)
        limits.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default: {value:,}")
    options = vars(parser.parse_args(arguments))
    try:
        bounds = Limits(**{name: options.pop(name) for name in Limits.__dataclass_fields__})
        if options["threads"] is None:
            del options["threads"]
        return Config(limits=bounds, **options)
    except ConfigError as error:
        parser.error(str(error))


async def serve(config: Config) -> int:
    """Run a server until a signal; the exit code is 0 after a clean stop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    app = App(config)
    await app.start()
    print(f"ready grpc={config.host}:{app.port} metrics={config.host}:{app.metrics_port}", flush=True)
    stopping: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
    await asyncio.wait((stopping, app.died), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    drained = await app.stop()
    return 0 if drained and not app.died.done() else 1


def main() -> int:
    config = parse()
    logs.configure(config.log_level)
    try:
        return asyncio.run(serve(config))
    except ConfigError as error:
        print(f"python -m server: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
