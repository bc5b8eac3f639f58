"""Who calls in these tests, and what stands around the code that lets them in."""

from __future__ import annotations

import json

ALICE, BOB, OTHER = "a" * 32, "b" * 32, "c" * 32


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Drain:
    """A drain rate of one row a second."""

    def retry_seconds(self, rows: int) -> float:
        return float(rows)


class Calls:
    """What the gate counts."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str]] = []

    def observe_call(self, rpc: str, model: str, code: str, seconds: float, **more: str) -> None:
        self.seen.append((rpc, model, code))


class Context:
    """A call from an address."""

    def __init__(self, peer: str = "ipv4:127.0.0.1:5") -> None:
        self._peer = peer

    def peer(self) -> str:
        return self._peer


def entry(name: str, *tokens: str, more: str = "") -> str:
    return f"[clients.{name}]\ntokens = {json.dumps(tokens)}\n{more}\n"
