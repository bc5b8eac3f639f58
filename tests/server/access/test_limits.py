"""What one client may ask for, with an injected clock."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.access.clients import Addresses, Client, address_of
from server.config import ClientLimits
from server.errors import InvalidArgument, Overloaded

from .calling import Clock, Drain


def test_the_rate_is_held_and_the_wait_is_right(clock: Clock):
    """After the burst a request is refused with the time until the next one, and that time is enough."""
    client = Client("alice", ClientLimits(2.0, 3), clock)
    for _ in range(3):
        client.request()
    with pytest.raises(Overloaded, match="2 requests a second") as caught:
        client.request()
    assert caught.value.retry_seconds == pytest.approx(0.5)
    clock.now += caught.value.retry_seconds
    client.request()
    clock.now += 1000
    for _ in range(3):
        client.request()
    with pytest.raises(Overloaded):
        client.request()


@settings(max_examples=100, deadline=None)
@given(
    waits=st.lists(st.floats(0, 3), max_size=60),
    rate=st.floats(0.1, 50),
    burst=st.one_of(st.none(), st.floats(1, 20)),
)
def test_no_sequence_of_requests_passes_the_rate(waits: list[float], rate: float, burst: float | None):
    """Over any time t at most burst + rate t requests pass, and one that waits as it was told to is let in."""
    clock = Clock()
    client = Client("alice", ClientLimits(rate, burst), clock)
    most = max(1.0, rate) if burst is None else burst
    start = clock.now
    for passed, wait in enumerate(waits, 1):
        clock.now += wait
        try:
            client.request()
        except Overloaded as error:
            clock.now += error.retry_seconds + 1e-9
            client.request()
        assert passed <= most + rate * (clock.now - start) + 1e-6


def test_rows_are_held_until_their_request_ends(clock: Clock):
    """Rows over the limit are refused while others are held, with the drain rate's delay; afterwards all are free."""
    client = Client("alice", ClientLimits(rows=10), clock)
    with client.holding(6, Drain()):
        with pytest.raises(Overloaded, match="6 rows") as caught, client.holding(8, Drain()):
            pytest.fail("let in")
        assert caught.value.retry_seconds == 4
        with client.holding(4, Drain()):
            assert client.rows == 10
    with pytest.raises(RuntimeError), client.holding(10, Drain()):
        raise RuntimeError("the request failed")
    assert client.rows == 0
    with (
        pytest.raises(InvalidArgument, match="11 rows asked for, this client may have 10"),
        client.holding(11, Drain()),
    ):
        pytest.fail("no wait would help")


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("ipv4:127.0.0.1:50312", ("127.0.0.1", True)),
        ("ipv4:192.0.2.7:1", ("192.0.2.7", False)),
        ("ipv6:%5B::1%5D:56942", ("::1", True)),
        ("ipv6:[2001:db8:1:2:3::4]:80", ("2001:db8:1:2::/64", False)),
        ("ipv6:%5Bfe80::1%25eth0%5D:80", ("fe80::/64", False)),
        ("ipv6:%5B::ffff:192.0.2.7%5D:1", ("192.0.2.7", False)),
        ("ipv6:%5B::ffff:127.0.0.1%5D:1", ("127.0.0.1", True)),
        ("unix:", ("unix", True)),
        ("unknown", ("unknown", False)),
        ("", ("", False)),
    ],
)
def test_addresses_are_told_apart_without_their_ports(peer: str, expected: tuple[str, bool]):
    """One IPv4 address or IPv6 network is one client; only this machine's own are local."""
    assert address_of(peer) == expected


def test_addresses_take_bounded_memory(clock: Clock):
    """The least recent address without open requests is forgotten; one that holds rows never is."""
    addresses = Addresses(ClientLimits(1.0), clock, most=3)
    holder = addresses.find("ipv4:10.0.0.1:1")
    with holder.holding(1, Drain()):
        for i in range(100):
            addresses.find(f"ipv4:10.1.0.{i}:1")
        assert len(addresses) == 3
        assert addresses.find("ipv4:10.0.0.1:2") is holder
    for i in range(3):
        addresses.find(f"ipv4:10.2.0.{i}:1")
    assert addresses.find("ipv4:10.0.0.1:3") is not holder
