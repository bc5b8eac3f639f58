"""Configurations that say one thing and would do another."""

from __future__ import annotations

import math

import pytest

from server.cli import parse
from server.config import ClientLimits, ConfigError, Security


def test_a_burst_without_a_rate_is_refused(capsys: pytest.CaptureFixture[str]):
    """It would come back at once and bound nothing; one line names both options, exit code 2."""
    with pytest.raises(SystemExit) as stop:
        parse(["--repository", "repository", "--client-burst", "3"])
    assert stop.value.code == 2
    assert "client_burst bounds nothing without client_requests_per_second" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(ConfigError, match="client_burst"):
        Security(client=ClientLimits(requests_per_second=math.inf, burst=3))


def test_a_burst_with_its_rate_is_taken():
    """Both on the command line, or the rate alone."""
    rate = ["--repository", "repository", "--client-requests-per-second", "2"]
    assert parse([*rate, "--client-burst", "3"]).security.client == ClientLimits(2.0, 3.0)
    assert parse(rate).security.client.burst is None
