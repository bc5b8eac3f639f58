"""BentoML with its adaptive batching: HTTP.

BentoML batches the calls from one service to another. So a service that speaks HTTP, as an ASGI application mounted
into it, asks two services that run batches, one of samples and one of scores: a score behind a batch of samples would
wait for all of it.

Why these settings:
- one worker for each service, and one thread in it for the engine;
- `max_latency_ms`, which BentoML plans its batches by and sheds by (503), is the patience of callers under overload;
- no access log and no metrics.
"""

# No `from __future__ import annotations`: BentoML reads the annotations of these methods at run time.

import os
import sys
from pathlib import Path
from typing import Any

import bentoml
import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .engine import load_engines
from .serving import HOST, OCTETS, read_options, read_sample, read_score, run_jobs

MAX_BATCH = 64
DELAY = 0.5
_REPOSITORY, _THREADS, _BATCH, _DELAY = (f"BENTO_PEER_{name}" for name in ("REPOSITORY", "THREADS", "BATCH", "DELAY"))
"""The options as variables: BentoML imports this module anew in each of its processes."""
BATCHED: Any = {
    "batchable": True,
    "max_batch_size": int(os.environ.get(_BATCH, MAX_BATCH)),
    "max_latency_ms": round(1e3 * float(os.environ.get(_DELAY, DELAY))),
}
ONE: Any = {"workers": 1, "threads": 1, "metrics": {"enabled": False}, "logging": {"access": {"enabled": False}}}


class Batching:
    """The models of a batching service."""

    def __init__(self) -> None:
        self.engines = load_engines(Path(os.environ[_REPOSITORY]), int(os.environ[_THREADS]))


@bentoml.service(**ONE)
class Samples(Batching):
    """Runs batches of POST /sample."""

    @bentoml.api(**BATCHED)
    def run(self, bodies: list[bytes]) -> list[bytes]:
        return run_jobs(self.engines, [read_sample(self.engines, body) for body in bodies])


@bentoml.service(**ONE)
class Scores(Batching):
    """Runs batches of POST /score; a call is MessagePack of model, rows and body."""

    @bentoml.api(**BATCHED)
    def run(self, calls: list[bytes]) -> list[bytes]:
        return run_jobs(self.engines, [read_score(self.engines, *msgspec.msgpack.decode(call)) for call in calls])


async def sample(request: Request) -> Response:
    """POST /sample."""
    (answer,) = await bentoml.get_current_service().samples.to_async.run([await request.body()])
    return Response(answer, media_type=OCTETS)


async def score(request: Request) -> Response:
    """POST /score."""
    query = request.query_params
    call = msgspec.msgpack.encode((query["model"], int(query["rows"]), await request.body()))
    (answer,) = await bentoml.get_current_service().scores.to_async.run([call])
    return Response(answer, media_type=OCTETS)


@bentoml.service(**ONE)
@bentoml.asgi_app(
    Starlette(routes=[Route("/sample", sample, methods=["POST"]), Route("/score", score, methods=["POST"])])
)
class Front:
    """What callers speak to."""

    samples = bentoml.depends(Samples)
    scores = bentoml.depends(Scores)


def main() -> None:
    """Become `bentoml serve`."""
    options = read_options("bento", max_batch=MAX_BATCH, delay=DELAY)
    os.environ[_REPOSITORY], os.environ[_THREADS] = str(options.repository.resolve()), str(options.threads)
    os.environ[_BATCH], os.environ[_DELAY] = str(options.max_batch), str(options.delay)
    os.environ["BENTOML_DO_NOT_TRACK"] = "1"
    command = [sys.executable, "-m", "bentoml", "serve", "bench.peers.bento:Front", "--host", HOST]
    os.execv(sys.executable, [*command, "--port", str(options.port)])  # noqa: S606


if __name__ == "__main__":
    main()
