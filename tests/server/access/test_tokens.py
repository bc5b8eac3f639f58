"""The tokens file."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from server.access.tokens import Tokens
from server.config import ClientLimits, ConfigError
from server.errors import Unauthenticated

from .calling import ALICE, BOB, OTHER, Clock, entry


def test_a_token_finds_its_client_with_its_limits(write: Callable[[str], Path], clock: Clock):
    """Limits of the file hold for their client, the defaults for the others; a hash does instead of a token."""
    text = entry("alice", ALICE, OTHER, more="requests_per_second = 2\nrows = 8\nadministrator = true")
    text += f'[clients.bob]\nsha256 = ["{hashlib.sha256(BOB.encode()).hexdigest()}"]\nrows = inf\n'
    tokens = Tokens(write(text), ClientLimits(7.0, 9.0, 100), clock=clock)
    alice, bob = tokens.find(ALICE), tokens.find(BOB)
    assert alice is not None
    assert bob is not None
    assert alice is tokens.find(OTHER)
    assert (alice.name, alice.limits, alice.administrator) == ("alice", ClientLimits(2.0, None, 8), True)
    assert (bob.name, bob.limits, bob.administrator) == ("bob", ClientLimits(7.0, 9.0, math.inf), False)
    for wrong in ("", "d" * 32, ALICE[:-1], ALICE + "a", ALICE.upper()):
        assert tokens.find(wrong) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold"),
        ("clients = 3", "Expected `object`"),
        ("[clients]", "must hold"),
        ("[clients.alice]\n", "alice has neither"),
        (entry("alice", "short"), "regex"),
        (entry("alice", "a b" * 20), "regex"),
        ('[clients.alice]\nsha256 = ["00"]\n', "regex"),
        (entry("alice", ALICE, ALICE), "alice stands there twice"),
        (entry("alice", ALICE) + entry("bob", ALICE), "bob stands there twice"),
        (entry("alice", ALICE) + entry("alice", BOB), "line"),
        (entry("alice", ALICE, more="rate = 1"), "unknown field `rate`"),
        (entry("alice", ALICE, more="rows = 0"), "client alice: rows must be at least 1"),
        (entry("alice", ALICE, more="requests_per_second = nan"), "client alice: requests_per_second"),
        (entry("alice", ALICE) + "[defaults]\n", "Expected|nothing else"),
        (entry('"al ice"', ALICE), "regex"),
        ("[clients.alice\n", "line 1"),
        ("\ufeff[clients", "tokens: "),
    ],
)
def test_a_malformed_tokens_file_is_refused_and_no_token_shown(write: Callable[[str], Path], text: str, message: str):
    """The message names the file and what is wrong, and holds no token."""
    path = write(text)
    with pytest.raises(ConfigError, match=message) as caught:
        Tokens(path, ClientLimits())
    assert str(path) in str(caught.value)
    assert ALICE not in str(caught.value)
    assert caught.value.__cause__ is None


def test_the_tokens_file_is_read_again(write: Callable[[str], Path], clock: Clock, caplog: pytest.LogCaptureFixture):
    """Tokens come and go with the file; a client that stays keeps its rows; a malformed file changes nothing."""
    path = write(entry("alice", ALICE))
    tokens = Tokens(path, ClientLimits(), clock=clock)
    alice = tokens.find(ALICE)
    assert alice is not None
    path.write_text(entry("alice", OTHER, more="rows = 5") + entry("bob", BOB))
    assert tokens.find(BOB) is None
    clock.now += 1.1
    assert tokens.find(BOB) is not None
    assert tokens.find(ALICE) is None
    assert tokens.find(OTHER) is alice
    assert alice.limits.rows == 5
    with caplog.at_level(logging.WARNING):
        path.write_text("")
        clock.now += 1.1
        assert tokens.find(BOB) is not None
    assert "stays in use" in caplog.text
    path.write_text(entry("bob", BOB))
    clock.now += 1.1
    with pytest.raises(Unauthenticated):
        alice.request()  # a stream of its that goes on
