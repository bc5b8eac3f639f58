"""Loads on a server of plain HTTP."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from bench.load import LoadPlan, LoadResult, run_load
from bench.mix import MixError
from bench.schedule import Poisson
from bench.targets import TargetError, open_target
from bench.targets.http import HttpTarget

SHAPE = (1, 4, 6)


class HttpServer:
    """Answers by the model's name: `toy` works, `busy` is overloaded, `short` leaves the last byte out, `slow` sleeps.

    requests: path, query and content of all that came. connections: how many were made.
    """

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.connections: set[Any] = set()

    async def answer(self, request: web.Request) -> web.Response:
        content = await request.read()
        self.connections.add(request.transport)
        self.requests.append((request.path, dict(request.query), content))
        if request.path == "/sample":
            asked = json.loads(content)
            model, body = asked["model"], np.zeros((len(asked["seeds"]), *SHAPE), "<f4").tobytes()
        else:
            model, body = request.query["model"], np.zeros(int(request.query["rows"]), "<f8").tobytes()
        if model == "busy":
            return web.Response(status=503)
        if model == "slow":
            await asyncio.sleep(1)
        return web.Response(body=body[:-1] if model == "short" else body, content_type="application/octet-stream")


@contextmanager
def http_server() -> Iterator[HttpServer]:
    """An HttpServer on a free port of this machine, in a thread of its own."""
    other = HttpServer()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/sample", other.answer)
        app.router.add_post("/score", other.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        other.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    runner = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield other
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def other() -> Iterator[HttpServer]:
    with http_server() as other:
        yield other


def load(other: HttpServer, mix: str) -> LoadResult:
    return run_load(LoadPlan(mix, Poisson(100), duration=0.4, warmup=0), HttpTarget(other.url, SHAPE))[0]


def test_samples_and_scores_travel_as_described(other: HttpServer) -> None:
    """JSON of the options for samples, raw floats for images to score, over connections that are used again."""
    result = load(other, "iddim:4:m=0.6:count=2:labels=3:model=toy=1,ddim:1:model=toy=1,score:images=5:model=toy=1")
    assert result.errors == {}
    assert result.total.ok == len(other.requests) > 5
    assert len(other.connections) < len(other.requests)
    assert result.total.rows == sum(kind.ok * rows for kind, rows in zip(result.kinds, (2, 1, 5), strict=True))
    seeds = []
    for path, query, content in other.requests:
        if path == "/score":
            assert query == {"model": "toy", "rows": "5"}
            images = np.frombuffer(content, "<f4").reshape(5, *SHAPE)
            assert -1 <= images.min() < 0 < images.max() <= 1
            continue
        asked = json.loads(content)
        seeds += asked.pop("seeds")
        wanted: dict[str, Any] = {"model": "toy", "sampler": "ddim", "steps": 1, "labels": None}
        if asked["sampler"] == "iddim":
            wanted = {"model": "toy", "sampler": "iddim", "steps": 4, "labels": [3, 3], "m": [0.6]}
        assert asked == wanted
    assert len(set(seeds)) == len(seeds)


def test_failures_have_their_codes(other: HttpServer) -> None:
    """The status of a refusal, the deadline, and an answer of another size than asked for."""
    mix = "ddim:1:model=busy=1,ddim:2:model=short=1,score:model=short=1,ddim:1:model=slow:timeout=0.1=1"
    busy, short, score, slow = load(other, mix).kinds
    assert busy.errors == {"HTTP_503": busy.sent}
    assert short.errors == {"BAD_ANSWER": short.sent}
    assert score.errors == {"BAD_ANSWER": score.sent}
    assert slow.errors == {"DEADLINE_EXCEEDED": slow.sent}


def test_what_cannot_be_asked_is_told_before_the_load(other: HttpServer) -> None:
    """Plain HTTP lists no models and tells no shapes."""
    for mix, said in (
        ("ddim:1=1", "'ddim:1': a server of plain HTTP lists no models, name one with model="),
        ("infer:model=toy=1", "cannot be asked for a model's inputs"),
    ):
        with pytest.raises(MixError, match=said):
            load(other, mix)
    with pytest.raises(MixError, match="needs the shape of its images, --image-shape"):
        run_load(LoadPlan("score:model=toy=1"), HttpTarget(other.url))


def test_nobody_there_and_no_url() -> None:
    """A clear error in place of a load in which everything fails."""
    with pytest.raises(TargetError, match=r"http://127\.0\.0\.1:1: no HTTP server answers"):
        run_load(LoadPlan("ddim:1:model=toy=1"), open_target("http", "http://127.0.0.1:1/"))
    with pytest.raises(ValueError, match=r"address: must be a URL as in http://127\.0\.0\.1:8000, got 'localhost:80'"):
        open_target("http", "localhost:80")
    with pytest.raises(ValueError, match="protocol: must be fewstep, oip or http, got 'smtp'"):
        open_target("smtp", "localhost:80")
