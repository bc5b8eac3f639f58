"""Where a server listens, and what that leaves open."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from server.access.gate import exposures
from server.config import ClientLimits, Config, ConfigError, Security


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_tls(host: str):
    """This machine may be served in the clear."""
    assert Config(Path(), host=host).host == host


EVERYWHERE = "0.0.0.0"  # noqa: S104 - nothing is bound


@pytest.mark.parametrize(
    "host", [EVERYWHERE, "::", "", "10.0.0.1", "example.org", "::ffff:127.0.0.1", "127.0.0.1.evil"]
)
def test_another_host_needs_tls_or_consent(host: str):
    """An address that others may reach is refused without TLS, unless the operator says so."""
    with pytest.raises(ConfigError, match=r"not loopback.*tls_certificate.*insecure"):
        Config(Path(), host=host)
    Config(Path(), host=host, security=Security(insecure=True))
    Config(Path(), host=host, security=Security(tls_certificate=Path("a"), tls_key=Path("b")))


def test_metrics_stay_on_this_machine_by_default():
    """The metrics page has no TLS and no tokens: it does not follow the host to other addresses."""
    assert Config(Path(), host=EVERYWHERE, security=Security(insecure=True)).metrics_host == "127.0.0.1"


def test_what_is_left_open_is_said():
    """Nothing on loopback; elsewhere what travels in the clear, who may call, and who reads the metrics."""
    pair = {"tls_certificate": Path("a"), "tls_key": Path("b")}
    assert exposures(Config(Path())) == []
    assert exposures(Config(Path(), host=EVERYWHERE, security=Security(**pair, tokens=Path("c")))) == []
    assert exposures(Config(Path(), host=EVERYWHERE, security=Security(**pair, tls_client_ca=Path("c")))) == []
    open_wide = exposures(Config(Path(), host=EVERYWHERE, metrics_host=EVERYWHERE, security=Security(insecure=True)))
    assert [sentence.partition(":")[0] for sentence in open_wide] == [
        "insecure",
        "no tokens and no tls_client_ca",
        "metrics_host",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tls_certificate": Path("a")}, "tls_certificate needs tls_key"),
        ({"tls_key": Path("a")}, "tls_key needs tls_certificate"),
        ({"tls_client_ca": Path("a")}, "tls_client_ca needs"),
    ],
)
def test_half_of_tls_is_refused(options: dict[str, Path], message: str):
    """Certificate and key come together, and a client CA only with them."""
    with pytest.raises(ConfigError, match=message):
        Security(**options)


@pytest.mark.parametrize(
    "limits", [{"requests_per_second": 0}, {"requests_per_second": math.nan}, {"burst": 0.5}, {"rows": 0}]
)
def test_client_limits_out_of_range_are_refused(limits: dict[str, float]):
    """A limit that nothing could pass is a mistake; the message names it."""
    with pytest.raises(ConfigError, match=next(iter(limits))):
        ClientLimits(**limits)
