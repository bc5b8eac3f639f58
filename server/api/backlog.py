"""Calls that gRPC has received and that no handler has been given yet.

gRPC hands them over one by one, the oldest first, as fast as the event loop takes them. Where more come than can be
handled they pile up there, unseen by admission: each is then handled when most of its time has passed, in vain, while
those behind it grow old. gRPC's own statistics (channelz) tell how many there are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from time import monotonic

from grpc._cython import cygrpc  # type: ignore[attr-defined]  # compiled; not in the stubs

LOOK_CALLS, MOST_CALLS = 32, 512
"""Calls that are taken up between two looks: while calls wait, and at most, after looks that found none.

A look costs a tenth of a millisecond, and half a kilobyte for good: gRPC's binding for Python does not free the text
that it gets (grpc/grpc#43196).
"""

WAITING_SECONDS = 0.01
"""From here on calls wait."""

PAUSE_SECONDS = 0.005
"""A longer time between two calls was spent on waiting for the second one."""


class Backlog:
    """How long calls wait until they are taken up. Entered by each handler for its call, on the event loop's thread."""

    def __init__(self, open_calls: Callable[[], int], *, clock: Callable[[], float] = monotonic) -> None:
        """open_calls: how many gRPC has, those that handlers have been given included."""
        self._open_calls = open_calls
        self._clock = clock
        self._handled = 0
        self._taken = 0
        self._until_look = LOOK_CALLS
        self._spent = 0.0
        self._last = clock()
        self.calls = 0
        """How many waited at the last look."""
        self._seconds = 0.0
        self._looked_at = self._last

    @property
    def seconds(self) -> float:
        """How long the call that is taken up next has waited, about, and at least.

        At the last look that was as long as it takes to take up so many; since then as many seconds of it have gone by.
        """
        if not self._seconds:
            return 0.0
        return max(0.0, self._seconds - (self._clock() - self._looked_at))

    def __enter__(self) -> None:
        """A handler has got a call."""
        now = self._clock()
        self._spent += min(now - self._last, PAUSE_SECONDS)
        self._last = now
        self._handled += 1
        self._taken += 1
        if self._taken >= self._until_look:
            self.calls = max(0, self._open_calls() - self._handled)
            self._seconds = self.calls * self._spent / LOOK_CALLS
            self._looked_at = now
            waiting = self._seconds > WAITING_SECONDS
            self._until_look = LOOK_CALLS if waiting else min(MOST_CALLS, 2 * self._until_look)
            self._taken, self._spent = 0, 0.0
        elif self._taken == self._until_look - LOOK_CALLS:
            self._spent = 0.0  # the time of the last calls before a look is what counts

    def __exit__(self, *error: object) -> None:
        """It has ended it."""
        self._handled -= 1


# What the package grpcio-channelz would serve to others, from where it has it.


def server_ids() -> set[int]:
    """The gRPC servers of this process."""
    return {int(server["ref"]["serverId"]) for server in json.loads(cygrpc.channelz_get_servers(0)).get("server", ())}


def open_calls(server_id: int) -> int:
    """The calls of a gRPC server that have begun and not ended."""
    data = json.loads(cygrpc.channelz_get_server(server_id))["server"]["data"]
    # Some versions leave out what is 0.
    started, succeeded, failed = (int(data.get(f"calls{name}", 0)) for name in ("Started", "Succeeded", "Failed"))
    return started - succeeded - failed
