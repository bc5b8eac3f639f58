"""The wire below the API: whatever bytes come over TCP, the server goes on, answers others, and keeps nothing."""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.footprint import Footprint, footprint
from bench.server_process import ServerProcess
from protos import fewstep_pb2 as pb
from protos import fewstep_pb2_grpc as rpc

from . import http2
from .http2 import ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, SETTINGS, frame, send
from .test_oracle import expected, images, request

GOOD = pb.SampleRequest(model="digits-ddpm", sampler="ddim", steps=2, seed=1).SerializeToString()
LONG = pb.SampleRequest(model="digits-ddpm", sampler="ddim", steps=100, count=4, seed=1).SerializeToString()
SLACK = Footprint(rss_bytes=0, threads=4, descriptors=4)
"""gRPC's pools of threads and pollers breathe."""


class Wire:
    """A server in a process of its own, and what it holds when nobody calls."""

    def __init__(self, process: ServerProcess) -> None:
        self.address = process.address
        self.metrics_address = process.metrics_address
        self._pid = process.pid
        self._wanted = expected("ddim", seed=5, count=2)
        self._channel = grpc.insecure_channel(self.address)
        self.models = rpc.ModelsStub(self._channel)
        for _ in range(3):  # gRPC starts its threads
            self.check_an_answer()
        self._level = footprint(self._pid)

    def close(self) -> None:
        self._channel.close()

    def check(self, seconds: float = 20.0) -> None:
        """A right request on another connection is answered rightly, and nothing is left of what came before."""
        self.check_an_answer()
        deadline = time.monotonic() + seconds
        while left := self._left():
            assert time.monotonic() < deadline, left
            time.sleep(0.01)

    def check_an_answer(self) -> None:
        with grpc.insecure_channel(self.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            answer = rpc.SamplerStub(channel).Sample(request("ddim", seed=5, count=2), timeout=30)
        assert np.abs(images(answer) - self._wanted).max() <= 1e-4

    def _left(self) -> list[str]:
        status = self.models.GetServerStatus(pb.GetServerStatusRequest(), timeout=30)
        held = {"rows in flight": status.rows_in_flight, "requests open": status.requests_open}
        now, level = footprint(self._pid), self._level
        if now is not None and level is not None:
            held["threads"] = max(0, now.threads - level.threads - SLACK.threads)
            held["descriptors"] = max(0, now.descriptors - level.descriptors - SLACK.descriptors)
        return [f"{count} {what}" for what, count in held.items() if count]


@pytest.fixture(scope="module")
def wire(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    with ServerProcess(repository, tmp_path_factory.mktemp("wire") / "server.log") as process:
        wire = Wire(process)
        try:
            yield wire
        finally:
            wire.close()


def examples(count: int) -> Callable:
    """Bounded, and the server's own speed is no test's failure."""
    return settings(max_examples=count, deadline=None, suppress_health_check=[HealthCheck.too_slow])


# -- drawn --------------------------------------------------------------------------------------------


@examples(60)
@given(data=st.binary(max_size=2000), reset=st.booleans())
def test_random_bytes(wire: Wire, data: bytes, reset: bool):
    """Bytes that are not HTTP/2 at all."""
    send(wire.address, data, reset=reset)
    wire.check()


FRAMES = st.builds(
    lambda kind, flags, stream, payload, lie: frame(kind, flags, stream, payload, length=max(0, len(payload) + lie)),
    st.one_of(st.integers(0, 9), st.integers(0, 255)),
    st.integers(0, 255),
    st.one_of(st.integers(0, 5), st.integers(0, 2**32 - 1)),
    st.binary(max_size=60),
    st.sampled_from([0, 0, 0, 0, 1, -1, 100, 2**20]),
)


@examples(100)
@given(frames=st.lists(FRAMES, max_size=12), opened=st.booleans())
def test_random_frames(wire: Wire, frames: list[bytes], opened: bool):
    """A right preface and then frames of any type, flags, stream and length, in any order, with or without a call."""
    begun = frame(HEADERS, END_HEADERS, 1, http2.request_headers()) if opened else b""
    send(wire.address, http2.start() + begun + b"".join(frames))
    wire.check()


@examples(100)
@given(data=st.data())
def test_a_right_call_with_damage(wire: Wire, data: st.DataObject):
    """A whole call of which some bytes were flipped, cut out or put in."""
    bent = bytearray(http2.start() + http2.call(http2.message(GOOD)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(bent) - 1))
        what = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if what == "flip":
            bent[at] ^= 1 << data.draw(st.integers(0, 7))
        elif what == "cut":
            del bent[at : at + data.draw(st.integers(1, 20))]
        else:
            bent[at:at] = data.draw(st.binary(min_size=1, max_size=20))
        if not bent:
            break
    send(wire.address, bytes(bent), patience=data.draw(st.sampled_from([0.0, 0.1])))
    wire.check()


@examples(80)
@given(
    size=st.one_of(st.integers(0, 300), st.sampled_from([2**31 - 1, 2**31, 2**32 - 1, 128 * 2**20 + 1])),
    flag=st.sampled_from([0, 0, 1, 2, 255]),
    body=st.one_of(st.just(GOOD), st.binary(max_size=200)),
    path=st.sampled_from([http2.SAMPLE, http2.STREAM, "/inference.GRPCInferenceService/ModelStreamInfer"]),
    drop=st.booleans(),
)
def test_length_prefixes_that_lie(wire: Wire, size: int, flag: int, body: bytes, path: str, drop: bool):
    """gRPC's prefix may claim more than there is, up to 4 GiB, or less, and that the message is compressed."""
    data = http2.message(body, compressed=flag, length=size)
    send(wire.address, http2.start() + http2.call(data, path), patience=0.0 if drop else 0.3, reset=drop)
    wire.check()


@examples(60)
@given(cut=st.integers(0, len(http2.start() + http2.call(http2.message(LONG)))), reset=st.booleans())
def test_connections_that_drop_amid_a_call(wire: Wire, cut: int, reset: bool):
    """The client vanishes after any byte of a call, with a FIN or with an RST."""
    send(wire.address, (http2.start() + http2.call(http2.message(LONG)))[:cut], reset=reset)
    wire.check()


# -- made ---------------------------------------------------------------------------------------------


def opened(*more: tuple[bytes, bytes], path: str = http2.SAMPLE, without: tuple[bytes, ...] = ()) -> bytes:
    """A call's first frame, with headers of the test's choice."""
    return frame(HEADERS, END_HEADERS, 1, http2.request_headers(path, *more, without=without))


def body(data: bytes = GOOD) -> bytes:
    return frame(DATA, END_STREAM, 1, http2.message(data))


HUGE = b"".join(http2.field(b"x-%d" % i, b"v" * 1000) for i in range(1000))
ATTACKS: dict[str, bytes] = {
    "DATA before HEADERS": frame(DATA, END_STREAM, 1, http2.message(GOOD)),
    "DATA on stream 0": frame(DATA, END_STREAM, 0, http2.message(GOOD)),
    "HEADERS on stream 0": frame(HEADERS, END_HEADERS, 0, http2.request_headers()),
    "an even stream": frame(HEADERS, END_HEADERS, 2, http2.request_headers()) + body(),
    "streams that go back": b"".join(http2.call(http2.message(GOOD), stream=s) for s in (9, 7, 5, 9)),
    "DATA after the end": opened() + body() + body(),
    "a frame of 16 MB": frame(DATA, 0, 1, length=2**24 - 1) + bytes(100_000),
    "padding beyond the frame": frame(HEADERS, END_HEADERS | 0x8, 1, b"\xff" + http2.request_headers()),
    "an HPACK index that there is not": frame(HEADERS, END_HEADERS, 1, b"\xfe" * 40),
    "an HPACK integer without end": frame(HEADERS, END_HEADERS, 1, b"\x00" + b"\xff" * 200),
    "an HPACK table of 4 GiB": frame(HEADERS, END_HEADERS, 1, b"\x3f\xff\xff\xff\xff\x0f"),
    "HPACK cut short": frame(HEADERS, END_HEADERS, 1, http2.request_headers()[:-7]),
    "broken Huffman": frame(HEADERS, END_HEADERS, 1, b"\x00\x85\xff\xff\xff\xff\xff\x81\xff"),
    "a megabyte of headers": frame(HEADERS, 0, 1, http2.request_headers())
    + b"".join(frame(CONTINUATION, 0, 1, HUGE[i : i + 16_000]) for i in range(0, len(HUGE), 16_000))
    + frame(CONTINUATION, END_HEADERS, 1)
    + body(),
    "20,000 headers": frame(HEADERS, 0, 1, http2.request_headers())
    + b"".join(frame(CONTINUATION, 0, 1, http2.field(b"x", b"") * 1000) for _ in range(20))
    + frame(CONTINUATION, END_HEADERS, 1)
    + body(),
    "CONTINUATION flood": frame(HEADERS, 0, 1, http2.request_headers()) + frame(CONTINUATION, 0, 1) * 5000,
    "CONTINUATION of another stream": frame(HEADERS, 0, 1) + frame(CONTINUATION, END_HEADERS, 3),
    "CONTINUATION without HEADERS": frame(CONTINUATION, END_HEADERS, 1, http2.request_headers()),
    "PUSH_PROMISE": frame(http2.PUSH_PROMISE, END_HEADERS, 1, struct.pack(">I", 2) + http2.request_headers()),
    "SETTINGS flood": http2.settings((1, 4096)) * 5000,
    "SETTINGS of odd length": frame(SETTINGS, 0, 0, b"\x00" * 5),
    "SETTINGS with a window too large": http2.settings((http2.INITIAL_WINDOW_SIZE, 2**32 - 1)),
    "SETTINGS acknowledged with a payload": frame(SETTINGS, ACK, 0, b"\x00" * 6),
    "PING flood": frame(http2.PING, 0, 0, bytes(8)) * 5000,
    "PING of odd length": frame(http2.PING, 0, 0, bytes(7)),
    "RST_STREAM of a stream that there is not": frame(RST_STREAM, 0, 99, bytes(4)),
    "WINDOW_UPDATE by 0": frame(http2.WINDOW_UPDATE, 0, 0, bytes(4)),
    "WINDOW_UPDATE beyond the bound": frame(http2.WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**31 - 1)) * 3,
    "GOAWAY and then a call": frame(http2.GOAWAY, 0, 0, bytes(8)) + opened() + body(),
    "a method that there is not": opened(path="/no.such.Service/Method") + body(),
    "a path of 100 kB": frame(HEADERS, 0, 1, http2.request_headers("/" + "x" * 15_000))
    + frame(CONTINUATION, END_HEADERS, 1)
    + body(),
    "GET": opened((b":method", b"GET"), without=(b":method",)) + body(),
    "no path": opened(without=(b":path",)) + body(),
    "no content type": opened(without=(b"content-type",)) + body(),
    "another content type": opened((b"content-type", b"text/html"), without=(b"content-type",)) + body(),
    "an encoding that there is not": opened((b"grpc-encoding", b"zip")) + frame(DATA, 1, 1, http2.message(GOOD)),
    "gzip": opened((b"grpc-encoding", b"gzip")) + frame(DATA, END_STREAM, 1, http2.message(GOOD, compressed=1)),
    "a timeout in words": opened((b"grpc-timeout", b"soon")) + body(),
    "a negative timeout": opened((b"grpc-timeout", b"-1S")) + body(),
    "a timeout of centuries": opened((b"grpc-timeout", b"99999999H")) + body(),
    "a timeout of a nanosecond": opened((b"grpc-timeout", b"1n")) + body(),
    "metadata that is not base64": opened((b"x-bin", b"!!!")) + body(),
    "metadata with control characters": opened((b"x", b"a\r\nb: c\x00")) + body(),
    "a name in capitals": opened((b"X-UPPER", b"1")) + body(),
    "no message": opened() + frame(DATA, END_STREAM, 1),
    "half a length prefix": opened() + frame(DATA, END_STREAM, 1, b"\x00\x00\x00"),
    "two messages for one": opened() + frame(DATA, END_STREAM, 1, http2.message(GOOD) * 2),
    "a message in 200 frames": opened()
    + b"".join(frame(DATA, 0, 1, bytes([byte])) for byte in http2.message(GOOD))
    + frame(DATA, END_STREAM, 1),
    "trailers from the client": opened()
    + frame(DATA, 0, 1, http2.message(GOOD))
    + frame(HEADERS, END_HEADERS | END_STREAM, 1, http2.field(b"x", b"y")),
    "unknown frames between": opened() + frame(0x42, 0xFF, 1, b"?" * 100) + body(),
    "300 calls at once": b"".join(http2.call(http2.message(GOOD), stream=1 + 2 * i) for i in range(300)),
    "rapid reset": b"".join(
        http2.call(http2.message(LONG), stream=1 + 2 * i) + frame(RST_STREAM, 0, 1 + 2 * i, struct.pack(">I", 8))
        for i in range(2000)
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_known_attacks(wire: Wire, attack: str):
    """Frames out of place, header blocks that bloat, floods, and calls that break gRPC's own rules."""
    send(wire.address, http2.start() + ATTACKS[attack], patience=0.3)
    wire.check()


def test_a_call_by_hand_is_answered(wire: Wire):
    """That the attacks get past the front door: the same hands can make a right call."""
    said = send(wire.address, http2.start() + http2.call(http2.message(GOOD)), patience=20.0)
    assert b"digits-ddpm" in said
    wire.check()


def test_connections_that_say_nothing(wire: Wire):
    """A hundred connections that send nothing, or the preface and nothing more, hold nobody up and leave no trace."""
    idle = [http2.connect(wire.address) for _ in range(100)]
    for connection in idle[:50]:
        connection.sendall(http2.start())
    wire.check_an_answer()
    for connection in idle:
        connection.close()
    wire.check()


def test_a_stream_without_a_window(wire: Wire):
    """A client that allows no bytes at all to be sent gets none; its rows end, and it holds nothing once it is gone."""
    window = http2.PREFACE + http2.settings((http2.INITIAL_WINDOW_SIZE, 0))

    def status() -> pb.GetServerStatusResponse:
        return wire.models.GetServerStatus(pb.GetServerStatusRequest(), timeout=30)

    before = status().requests_total
    with http2.connect(wire.address) as connection:
        connection.sendall(window + http2.call(http2.message(LONG), http2.STREAM))
        deadline = time.monotonic() + 30
        while (now := status()).requests_total == before or now.requests_open:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert now.rows_in_flight == 0
    wire.check()


def test_the_metrics_page_outlives_bad_callers(wire: Wire):
    """Garbage, a huge request and connections that say nothing do not keep others from the page."""
    idle = [http2.connect(wire.metrics_address) for _ in range(20)]
    for data in (b"\x00" * 1000, os.urandom(3000), b"GET /" + b"a" * 100_000, b"POST / HTTP/1.1\r\n\r\n", b"GET"):
        send(wire.metrics_address, data)
    page = send(wire.metrics_address, b"GET /metrics HTTP/1.0\r\n\r\n")
    assert b"fewstep_requests_open" in page
    for connection in idle:
        connection.close()
    wire.check()


def test_many_bad_clients_at_once(wire: Wire):
    """Attackers all at the same time, and good requests between them."""
    rng = random.Random(0)
    names = [name for name in ATTACKS if len(ATTACKS[name]) < 100_000]
    connections = []
    for name in rng.choices(names, k=60):
        connection = http2.connect(wire.address)
        connection.sendall(http2.start() + ATTACKS[name])
        connections.append(connection)
        if len(connections) % 10 == 0:
            wire.check_an_answer()
    for connection in connections:
        connection.close()
    wire.check()
