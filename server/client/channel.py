"""How the client connects: in the clear to this machine, or with TLS, and with its token in every call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import grpc

_LOOPBACK = ("127.", "localhost:", "[::1]:", "unix:")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the client shows, and whom it trusts.

    tls: encrypt, and trust the CAs that gRPC ships. tls_ca: PEM file of the CAs to trust instead.
    certificate, key: PEM files that the client shows to a server that asks. token: the bearer token.
    insecure: send the token in the clear to another machine.
    """

    tls: bool = False
    tls_ca: str | PathLike[str] | None = None
    certificate: str | PathLike[str] | None = None
    key: str | PathLike[str] | None = None
    token: str | None = field(default=None, repr=False)
    insecure: bool = False

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)


def open_channel(address: str, options: Sequence[tuple[str, int]], credentials: Credentials) -> grpc.Channel:
    """A channel to `address`.

    Raises:
        ValueError: the certificate or its key is missing, the token is not visible ASCII, or it would travel in the
            clear to another machine.
        OSError: a file cannot be read.
    """
    if (credentials.certificate is None) != (credentials.key is None):
        raise ValueError("certificate and key: give both or none")
    token = credentials.token
    if token is not None and not (token.isascii() and token.isprintable() and token and " " not in token):
        raise ValueError("token: must be visible ASCII characters")  # and gRPC's own message would print it
    local = address.startswith(_LOOPBACK)
    # gRPC would ask the proxy of the environment for this machine's own ports.
    given = [*options, ("grpc.enable_http_proxy", 0)] if local else list(options)
    if credentials.tls or credentials.tls_ca is not None or credentials.certificate is not None:
        ca, key, certificate = (
            None if path is None else Path(path).read_bytes()
            for path in (credentials.tls_ca, credentials.key, credentials.certificate)
        )
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, key, certificate), given)
    if token is not None and not (local or credentials.insecure):
        raise ValueError(
            f"token: would travel in the clear to {address}; give tls_ca or tls, or insecure where the network is safe"
        )
    return grpc.insecure_channel(address, given)


def read_token(path: str | PathLike[str]) -> str:
    """The token in a file, without the white space around it.

    Raises:
        ValueError: the file is empty, or holds more than one word. OSError: it cannot be read.
    """
    words = Path(path).read_text().split()
    if len(words) != 1:
        raise ValueError(f"token file {path}: must hold one token and nothing else")
    return words[0]
