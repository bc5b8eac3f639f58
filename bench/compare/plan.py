"""How long everything takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """Rounds, and for each measurement of a round its length.

    idle_requests: one after the other, with pauses and without. saturation, large, mixed, overload: seconds of load,
    after `settle` seconds of the same that do not count. bare: seconds of each batch size in the loop without a server.
    trial: seconds of each trial before the rounds (clients, capacities). overload_rounds: they have three loads each.
    patience: seconds within which an answer is of use under overload.
    """

    rounds: int = 3
    idle_rounds: int = 5
    overload_rounds: int = 2
    idle_requests: int = 120
    settle: float = 0.7
    trial: float = 2.0
    saturation: float = 2.5
    large: float = 8.0
    bare: float = 1.2
    mixed: float = 7.0
    overload: float = 3.0
    patience: float = 0.5


FULL = Plan()
QUICK = Plan(
    rounds=1,
    idle_rounds=1,
    overload_rounds=1,
    idle_requests=40,
    settle=0.4,
    trial=1.0,
    saturation=1.2,
    large=2.0,
    bare=0.4,
    mixed=2.5,
    overload=1.5,
)
"""To see that everything works; its numbers are no more than a hint."""
