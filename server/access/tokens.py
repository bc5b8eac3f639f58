"""Bearer tokens: the file of the clients that may call.

    [clients.gallery]
    tokens = ["Zk3v..."]                # any number, so that a new one can be brought in before the old one goes
    sha256 = ["9f86..."]                # or their SHA-256 in hex, and the file holds no secret
    requests_per_second = 50            # optional, as are the next three
    burst = 100
    rows = 512
    administrator = true                # may load and unload models

A token is at least 32 visible ASCII characters, e.g. from `openssl rand -hex 32`.
"""

from __future__ import annotations

import hashlib
import hmac
import tomllib
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta, Struct

from ..config import ClientLimits, ConfigError
from .clients import Client
from .secret_files import Reloaded, read_file

MAX_CLIENTS = 1000

Name = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._@-]{0,63}\Z")]
# A random token of 32 characters cannot be guessed, so its plain SHA-256 gives nothing away either.
Token = Annotated[str, Meta(pattern=r"\A[\x21-\x7e]{32,512}\Z")]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class _Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """One table `[clients.NAME]`; a limit that is not given is the server's own."""

    tokens: tuple[Token, ...] = ()
    sha256: tuple[Sha256, ...] = ()
    requests_per_second: float | None = None
    burst: float | None = None
    rows: float | None = None
    administrator: bool = False

    def digests(self) -> list[bytes]:
        return [digest_of(token) for token in self.tokens] + [bytes.fromhex(digest) for digest in self.sha256]

    def limits(self, default: ClientLimits) -> ClientLimits:
        """Raises ConfigError where one is out of range."""
        if self.requests_per_second is None:
            rate, burst = default.requests_per_second, self.burst if self.burst is not None else default.burst
        else:
            rate, burst = self.requests_per_second, self.burst
        return ClientLimits(rate, burst, default.rows if self.rows is None else self.rows)


class _Known(NamedTuple):
    """The file's content: who has which token, and what each may do."""

    digests: tuple[tuple[bytes, str], ...]
    limits: dict[str, ClientLimits]
    administrators: frozenset[str]


class Tokens:
    """The clients of a tokens file, which is looked at once a second at most and read again when it changed.

    A client that stays in the file keeps its rows and its rate over a change.
    """

    def __init__(self, path: Path, defaults: ClientLimits, *, clock: Callable[[], float] = monotonic) -> None:
        """
        Raises:
            ConfigError: the file is missing, open to other users or malformed; names the client and the field.
        """
        self._clock = clock
        self._reloaded = Reloaded([path], lambda: _read(path, defaults), clock=clock)
        self._clients: dict[str, Client] = {}
        self._apply()

    def find(self, token: str) -> Client | None:
        """Whose token that is; None where it is nobody's."""
        self._refresh()
        digest = digest_of(token)
        found = None
        # All of them, always, and by digest: the time that it takes tells nothing about any token.
        for known, name in self._reloaded.value.digests:
            if hmac.compare_digest(known, digest):
                found = name
        return None if found is None else self._clients[found]

    def _refresh(self) -> None:
        if self._reloaded.refresh():
            self._apply()

    def _apply(self) -> None:
        known, before = self._reloaded.value, self._clients
        self._clients = {}
        for name, limits in known.limits.items():
            client = before.pop(name, None) or Client(name, limits, self._clock, refresh=self._refresh)
            client.limits, client.administrator = limits, name in known.administrators
            self._clients[name] = client
        for gone in before.values():
            gone.removed = True


def digest_of(token: str) -> bytes:
    """SHA-256 of a token."""
    return hashlib.sha256(token.encode()).digest()


def _read(path: Path, defaults: ClientLimits) -> _Known:
    try:
        document = tomllib.loads(read_file("tokens", path, private=True).decode())
        # A file that is being written is empty for a moment: it must not lock everybody out.
        entries = msgspec.convert(document, dict[str, dict[Name, _Entry]])
        clients = entries.pop("clients", {})
        if entries or not 1 <= len(clients) <= MAX_CLIENTS:
            raise ConfigError(f"tokens: {path} must hold [clients.NAME], 1 to {MAX_CLIENTS} of them, and nothing else")
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"tokens: {path}: {error}") from None
    digests: dict[bytes, str] = {}
    limits: dict[str, ClientLimits] = {}
    for name, entry in clients.items():
        own = entry.digests()
        if not own:
            raise ConfigError(f"tokens: {path}: client {name} has neither tokens nor sha256")
        for digest in own:
            if digest in digests:
                raise ConfigError(f"tokens: {path}: a token of client {name} stands there twice")
            digests[digest] = name
        try:
            limits[name] = entry.limits(defaults)
        except ConfigError as error:
            raise ConfigError(f"tokens: {path}: client {name}: {error}") from None
    administrators = frozenset(name for name, entry in clients.items() if entry.administrator)
    return _Known(tuple(digests.items()), limits, administrators)
