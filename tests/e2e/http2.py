"""HTTP/2 and gRPC by hand, so that a test can send what no library would: frames, header blocks, length prefixes."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
INITIAL_WINDOW_SIZE = 4
SAMPLE = "/fewstep.v1.Sampler/Sample"
STREAM = "/fewstep.v1.Sampler/SampleStream"
SECONDS = 3.0
"""Bound on one operation on a socket."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """A frame; `length` lies about its payload."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(*pairs: tuple[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", name, value) for name, value in pairs))


def field(name: bytes, value: bytes) -> bytes:
    """A header, literal and not indexed (RFC 7541, 6.2.2)."""
    return b"\x00" + _integer(len(name)) + name + _integer(len(value)) + value


def _integer(value: int) -> bytes:
    """A length with a prefix of 7 bits (RFC 7541, 5.1)."""
    if value < 127:
        return bytes([value])
    out, value = bytearray([127]), value - 127
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def request_headers(path: str = SAMPLE, *more: tuple[bytes, bytes], without: Sequence[bytes] = ()) -> bytes:
    """The header block of a gRPC call; `more` comes behind, and names in `without` are left out."""
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"test"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ]
    return b"".join(field(name, value) for name, value in (*fields, *more) if name not in without)


def message(data: bytes, *, compressed: int = 0, length: int | None = None) -> bytes:
    """A length-prefixed gRPC message; `length` lies about its size."""
    return struct.pack(">BI", compressed, len(data) if length is None else length) + data


def call(data: bytes, path: str = SAMPLE, stream: int = 1) -> bytes:
    """A whole unary call whose messages are `data`, prefixes included, on a connection that is open."""
    opened = frame(HEADERS, END_HEADERS, stream, request_headers(path))
    return opened + frame(DATA, END_STREAM, stream, data)


def start() -> bytes:
    """What a client says first."""
    return PREFACE + settings()


def send(address: str, data: bytes, *, patience: float = 0.0, reset: bool = False) -> bytes:
    """Send bytes on a connection of its own, and read until the server hangs up.

    patience: seconds to wait for the end of a call, or for the server's refusal to go on, before saying that there is
    nothing to come; the server then reads to the end, and closes. reset: drop the connection with RST instead.

    Returns: what the server said.
    """
    with connect(address) as connection:
        said = b""
        try:
            connection.sendall(data)
            if patience:
                connection.settimeout(patience)
                said = _read_to_the_end_of_a_call(connection)
                connection.settimeout(SECONDS)
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return said
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                said += part
        except OSError:
            return said  # it may hang up on us, or wait for more: what it does afterwards is what counts
        return said


def _read_to_the_end_of_a_call(connection: socket.socket) -> bytes:
    """All that comes up to the first call's end, a reset, a GOAWAY, or silence."""
    said = b""
    try:
        while not _ended(said) and (part := connection.recv(65536)):
            said += part
    except TimeoutError:
        return said
    return said


def _ended(said: bytes) -> bool:
    at = 0
    while len(said) >= at + 9:
        length, kind, flags = int.from_bytes(said[at : at + 3]), said[at + 3], said[at + 4]
        if kind in (RST_STREAM, GOAWAY) or (kind in (HEADERS, DATA) and flags & END_STREAM):
            return True
        at += 9 + length
    return False


def connect(address: str) -> socket.socket:
    """A plain connection, on which nothing takes longer than seconds."""
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=SECONDS)
