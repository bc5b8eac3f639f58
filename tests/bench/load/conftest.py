"""A server with known behaviour, for loads on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bench.fake_server import FakeServer, fake_server


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake
