"""A server with the real API and known answers, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.client import FewstepClient
from tests.bench.fake_server import FakeServer, fake_server


@pytest.fixture(scope="module")
def running() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake


@pytest.fixture
def fake(running: FakeServer) -> FakeServer:
    running.requests.clear()
    running.calibrated = True
    running.sample_seconds = 0.0
    running.stream_cancelled.clear()
    return running


@pytest.fixture
def client(fake: FakeServer) -> Iterator[FewstepClient]:
    with FewstepClient(fake.address, timeout=10) as client:
        yield client
