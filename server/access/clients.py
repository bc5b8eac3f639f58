"""Who calls, and how much one caller may ask for. Used from the event loop only; the clock is injected."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from functools import lru_cache
from typing import Protocol
from urllib.parse import unquote

from ..config import ClientLimits
from ..errors import InvalidArgument, Overloaded, Unauthenticated

MAX_ADDRESSES = 10_000
IPV6_NETWORK = 64  # bits: one customer gets a network at least this large, and its addresses are free


class Drain(Protocol):
    """How long rows take to end."""

    def retry_seconds(self, rows: int) -> float:
        """A sensible delay before trying again behind `rows` rows."""


class Client:
    """One caller: a name of the tokens file, or an address."""

    def __init__(
        self,
        name: str,
        limits: ClientLimits,
        clock: Callable[[], float],
        *,
        administrator: bool = False,
        refresh: Callable[[], None] | None = None,
    ) -> None:
        """administrator: may load and unload models. refresh: called before each request; may change what is here."""
        self.name = name
        self.administrator = administrator
        self.removed = False
        self.rows = 0
        self._refresh = refresh
        self._clock = clock
        self._filled = clock()
        self.limits = limits
        self._tokens = self._burst

    @property
    def limits(self) -> ClientLimits:
        return self._limits

    @limits.setter
    def limits(self, limits: ClientLimits) -> None:
        self._limits = limits
        self._burst = max(1.0, limits.requests_per_second) if limits.burst is None else limits.burst

    def request(self) -> None:
        """Count a request: a call, or one message of a stream of requests.

        Raises:
            Unauthenticated: the client has been removed while its stream went on.
            Overloaded: more than `requests_per_second` in the long run, and than `burst` at once.
        """
        if self._refresh is not None:
            self._refresh()
        if self.removed:
            raise Unauthenticated
        rate = self._limits.requests_per_second
        self._tokens, self._filled = self._level(), self._clock()
        if self._tokens < 1.0:
            wait = (1.0 - self._tokens) / rate
            raise Overloaded(f"this client may send {rate:g} requests a second", wait)
        self._tokens -= 1.0

    def holding(self, rows: int, drain: Drain) -> Holding:
        """Count rows for as long as their request goes on: a context manager.

        Entering it raises:
            InvalidArgument: more rows than the client may ever have. Overloaded: more than it may have now.
        """
        return Holding(self, rows, drain)

    def _level(self) -> float:
        passed = self._clock() - self._filled
        # An infinite rate times no time at all is no number.
        return (
            min(self._burst, self._tokens + passed * self._limits.requests_per_second) if passed > 0 else self._tokens
        )


class Holding:
    """Rows on a client's account, see `Client.holding`."""

    __slots__ = ("_client", "_drain", "_rows")

    def __init__(self, client: Client, rows: int, drain: Drain) -> None:
        self._client, self._rows, self._drain = client, rows, drain

    def __enter__(self) -> None:
        client, rows, most = self._client, self._rows, self._client.limits.rows
        if rows > most:
            raise InvalidArgument("count", f"{rows} rows asked for, this client may have {most:g}")
        if client.rows + rows > most:
            wait = self._drain.retry_seconds(int(client.rows + rows - most))
            raise Overloaded(f"{client.rows} rows of this client have not ended, at most {most:g} may", wait)
        client.rows += rows

    def __exit__(self, *error: object) -> None:
        self._client.rows -= self._rows


class Addresses:
    """The callers of a server without a tokens file: one an IPv4 address or IPv6 network, in bounded memory."""

    def __init__(self, limits: ClientLimits, clock: Callable[[], float], most: int = MAX_ADDRESSES) -> None:
        self._limits, self._clock, self._most = limits, clock, most
        self._clients: OrderedDict[str, Client] = OrderedDict()

    def __len__(self) -> int:
        return len(self._clients)

    def find(self, peer: str) -> Client:
        """The client of a gRPC peer, e.g. `ipv4:192.0.2.1:50312`."""
        name, loopback = address_of(peer)
        client = self._clients.get(name)
        if client is None:
            self._make_room()
            client = self._clients[name] = Client(name, self._limits, self._clock, administrator=loopback)
        self._clients.move_to_end(name)
        return client

    def _make_room(self) -> None:
        """Forget the client that called longest ago, of those without an open request."""
        if len(self._clients) >= self._most:
            # Where each has one, there is no more than max_concurrent_calls of them.
            unused = next((name for name, client in self._clients.items() if not client.rows), None)
            if unused is not None:
                del self._clients[unused]


@lru_cache(maxsize=4096)
def address_of(peer: str) -> tuple[str, bool]:
    """The address of a gRPC peer without its port, and whether it is of this machine.

    An IPv6 address is cut to its network.
    """
    scheme, _, rest = peer.partition(":")
    if scheme == "unix":
        return scheme, True
    host = unquote(rest).rpartition(":")[0].removeprefix("[").removesuffix("]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return peer, False
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            if address.is_loopback:
                return str(address), True
            return str(ipaddress.ip_network((address, IPV6_NETWORK), strict=False)), False
        address = address.ipv4_mapped
    return str(address), address.is_loopback


CLIENT: ContextVar[Client] = ContextVar("client")
"""The caller of the call that this task answers; set before its handler runs."""

UNLIMITED = Client("", ClientLimits(), lambda: 0.0)
"""Stands where nobody is told from anybody else: probes, and jobs that no call has made."""
