"""Connections are bounded, and those that say nothing do not stay."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from protos import fewstep_pb2 as pb
from server import app
from server.config import Limits

from ..running import RunningServer, running_server

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def connect(server: RunningServer) -> socket.socket:
    host, port = server.address.split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def greeted(connection: socket.socket) -> bool:
    """Whether the server sends its settings, which it does first of all; a refused connection is closed."""
    try:
        return connection.recv(1) != b""
    except ConnectionResetError:
        return False


def test_connections_beyond_the_bound_are_closed_and_the_others_served(own_repository: Path):
    request = pb.SampleRequest(model="digits-ddpm", steps=1)
    with running_server(own_repository, limits=Limits(max_connections=3)) as server, ExitStack() as stack:
        server.sample(request)  # the first connection, which stays open
        others = [stack.enter_context(connect(server)) for _ in range(2)]
        assert [greeted(connection) for connection in others] == [True, True]
        assert not greeted(stack.enter_context(connect(server)))
        assert server.sample(request).steps == 1

        others[0].close()
        deadline = time.monotonic() + 20
        while not greeted(stack.enter_context(connect(server))):
            assert time.monotonic() < deadline, "the place of a closed connection is not free again"


@pytest.mark.parametrize("said", [b"", PREFACE], ids=["nothing", "half a greeting"])
def test_a_connection_that_does_not_finish_its_handshake_is_closed(own_repository: Path, said, monkeypatch):
    monkeypatch.setattr(app, "HANDSHAKE_SECONDS", 0.5)
    with running_server(own_repository) as server, connect(server) as silent:
        silent.sendall(said)
        while silent.recv(4096):
            pass  # its settings; then the end, and no timeout of ours
