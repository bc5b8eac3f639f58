"""Ray Serve with `@serve.batch`: HTTP.

Why these settings:
- one replica, whose one worker thread runs the engine, so that its event loop goes on reading requests meanwhile;
- a batch queue for each model and kind of call: requests that cannot share a network run do not wait for each other;
- Starlette's requests and responses as they are: bytes in, bytes out;
- one CPU, no dashboard, an object store of 80 MB (the least that Ray takes): two cores are all there is;
- queued requests are bounded, so that an overload is refused at once (503) and not after its deadline.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from models.machine import ROOT

from .engine import load_engines
from .serving import HOST, OCTETS, Job, ServeOptions, read_options, read_sample, read_score, run_jobs

MAX_BATCH = 64
DELAY = 0.0
MAX_ONGOING = 256
MAX_QUEUED = 256
OBJECT_STORE_BYTES = 80 << 20
Batched = Callable[[Job], Awaitable[bytes]]


@serve.deployment(max_ongoing_requests=MAX_ONGOING, max_queued_requests=MAX_QUEUED, ray_actor_options={"num_cpus": 1})
class Sampler:
    """All models in one replica."""

    def __init__(self, repository: str, options: ServeOptions) -> None:
        self.options = options
        self.engines = load_engines(Path(repository), options.threads)
        self.thread = ThreadPoolExecutor(1, "engine")
        self.queues: dict[tuple[str, bool], Batched] = {}

    async def __call__(self, request: Request) -> Response:
        body = await request.body()
        try:
            if request.url.path == "/sample":
                job = read_sample(self.engines, body)
            else:
                job = read_score(self.engines, request.query_params["model"], int(request.query_params["rows"]), body)
        except (ValueError, KeyError) as error:
            return PlainTextResponse(str(error), status_code=400)
        return Response(await self.queue_of(job)(job), media_type=OCTETS)

    def queue_of(self, job: Job) -> Batched:
        key = job.model, job.request.images is None
        if key not in self.queues:
            self.queues[key] = self.batched()
        return self.queues[key]

    def batched(self) -> Batched:
        """A batch queue of its own."""

        @serve.batch(max_batch_size=self.options.max_batch, batch_wait_timeout_s=self.options.delay)
        async def run(jobs: list[Job]) -> list[bytes]:
            return await asyncio.get_running_loop().run_in_executor(self.thread, run_jobs, self.engines, jobs)

        return run


def main() -> None:
    """Serve until SIGTERM."""
    options = read_options("ray_serve", max_batch=MAX_BATCH, delay=DELAY)
    stopped = threading.Event()
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        _node_ip_address=HOST,  # else Ray listens on the machine's outer address
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(http_options={"host": HOST, "port": options.port, "location": "HeadOnly"}, logging_config=quiet)
    deployment: Any = Sampler  # which the decorator made of the class
    serve.run(deployment.bind(str(options.repository.resolve()), options), route_prefix="/", logging_config=quiet)
    # After Ray has set its own handlers.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
