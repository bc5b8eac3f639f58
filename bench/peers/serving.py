"""What the peers that are servers share: their command line, and the HTTP contract of those that speak HTTP.

    POST /sample                       {"model", "sampler", "steps", "seeds": [...], "labels": [...] | null}
                                       -> images, float32, little-endian, row by row
    POST /score?model=NAME&rows=N      images, float32, little-endian -> energies, float64, little-endian

Tensors travel as raw bytes, so that no server pays for numbers written as text.
It needs what `engine` needs and nothing more.
"""

from __future__ import annotations

import argparse
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from .engine import Engine, Request, RequestError

HOST = "127.0.0.1"
OCTETS = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How a peer is started. threads: of the engine. max_batch: what one batch may hold, rows or, where a server counts
    no rows, requests. delay: seconds that a batch may wait to be filled."""

    repository: Path
    port: int
    threads: int
    max_batch: int
    delay: float


def read_options(name: str, *, max_batch: int, delay: float) -> ServeOptions:
    """The options of a peer from its command line; max_batch and delay are the peer's own defaults."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.peers.{name}")
    parser.add_argument("--repository", type=Path, required=True, help="the models to serve")
    parser.add_argument("--port", type=int, required=True, help=f"on {HOST}")
    parser.add_argument("--threads", type=int, default=1, help="of the engine, default %(default)d")
    parser.add_argument("--max-batch", type=int, default=max_batch, help="default %(default)d")
    parser.add_argument("--delay", type=float, default=delay, help="seconds, default %(default)g")
    return ServeOptions(**vars(parser.parse_args()))


def free_port() -> int:
    """A port of this machine's loopback interface that nobody listens on, for a server that must be told one."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


class Job(NamedTuple):
    """One call: the model's name, and what its engine is asked."""

    model: str
    request: Request


class SampleCall(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /sample."""

    model: str
    seeds: list[int]
    sampler: str | None = None
    steps: int | None = None
    labels: list[int] | None = None


def read_sample(engines: Mapping[str, Engine], body: bytes) -> Job:
    """The job of a POST /sample.

    Raises:
        ValueError: the body is malformed, or the model does not have what it asks for.
    """
    call = msgspec.json.decode(body, type=SampleCall)
    engine = _find(engines, call.model)
    return Job(call.model, engine.sample_request(call.sampler, call.steps, call.seeds, call.labels))


def read_score(engines: Mapping[str, Engine], model: str, rows: int, body: bytes) -> Job:
    """The job of a POST /score.

    Raises:
        ValueError: the images are not of the model's shape, or it has no energy.
    """
    engine = _find(engines, model)
    images = np.frombuffer(body, "<f4").reshape(rows, *engine.card.image.shape)
    return Job(model, engine.score_request(images))


def run_jobs(engines: Mapping[str, Engine], jobs: Sequence[Job]) -> list[bytes]:
    """Run a batch of jobs, model by model, and give each its answer's bytes."""
    answers: list[Any] = [None] * len(jobs)
    for model in dict.fromkeys(job.model for job in jobs):
        places = [place for place, job in enumerate(jobs) if job.model == model]
        found = engines[model].run([jobs[place].request for place in places])
        for place, array in zip(places, found, strict=True):
            answers[place] = array.tobytes()
    return answers


def _find(engines: Mapping[str, Engine], model: str) -> Engine:
    if model not in engines:
        raise RequestError(f"model: must be one of {', '.join(engines)}, got {model!r}")
    return engines[model]
