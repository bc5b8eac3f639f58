"""LitServe with its batching loop: HTTP.

Why these settings:
- samples and scores are two LitAPIs, each with one worker process: LitServe has one queue for a LitAPI, and a score
  behind a batch of samples would wait for all of it;
- requests come through a FastAPI dependency, as LitServe itself reads JSON and forms alone, and leave as a Response;
- one HTTP process, responses over its ZeroMQ queue (`fast_queue`);
- the delay is never 0: LitServe then asks its queue without a pause, which takes one of the two cores.
"""

# No `from __future__ import annotations`: LitServe reads the annotations of these methods at run time.

from abc import abstractmethod
from pathlib import Path
from typing import Annotated

import litserve
from fastapi import Depends, HTTPException, Request, Response

from .engine import load_engines
from .serving import HOST, OCTETS, Job, ServeOptions, read_options, read_sample, read_score, run_jobs

MAX_BATCH = 64
DELAY = 0.002


async def read_body(request: Request) -> tuple[dict[str, str], bytes]:
    """A request's query and body."""
    return dict(request.query_params), await request.body()


Call = Annotated[tuple, Depends(read_body)]


class Batching(litserve.LitAPI):
    """What both LitAPIs do: run a batch on the engines."""

    def __init__(self, path: str, options: ServeOptions) -> None:
        super().__init__(max_batch_size=options.max_batch, batch_timeout=options.delay, api_path=path)
        self.repository = str(options.repository)
        self.threads = options.threads

    def setup(self, device: str) -> None:
        self.engines = load_engines(Path(self.repository), self.threads)

    @abstractmethod
    def read(self, query: dict[str, str], body: bytes) -> Job:
        """The job that a request's query and body ask for."""

    def decode_request(self, request: Call) -> Job:
        try:
            return self.read(*request)
        except (ValueError, KeyError) as error:
            raise HTTPException(400, str(error)) from error

    def batch(self, inputs: list[Job]) -> list[Job]:
        return inputs

    def predict(self, x: list[Job]) -> list[bytes]:
        return run_jobs(self.engines, x)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type=OCTETS)


class Sampling(Batching):
    """POST /sample."""

    def read(self, query: dict[str, str], body: bytes) -> Job:
        return read_sample(self.engines, body)


class Scoring(Batching):
    """POST /score."""

    def read(self, query: dict[str, str], body: bytes) -> Job:
        return read_score(self.engines, query["model"], int(query["rows"]), body)


def main() -> None:
    """Serve until SIGTERM."""
    options = read_options("lit_serve", max_batch=MAX_BATCH, delay=DELAY)
    apis = [Sampling("/sample", options), Scoring("/score", options)]
    server = litserve.LitServer(apis, accelerator="cpu", devices=1, workers_per_device=1, fast_queue=True)
    server.run(host=HOST, port=options.port, num_api_servers=1, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
