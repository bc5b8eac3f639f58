"""Switches of gRPC's core, which reads them once, when it is imported: whoever sets them has not imported it yet."""

from __future__ import annotations

import os

VARIABLE = "GRPC_EXPERIMENTS"

SERVER = "-event_engine_listener"
CLIENT = "-event_engine_client"
"""gRPC's older way to read sockets, for servers and for clients. The newer one reads on threads of its own, and hands
what came to the thread that waits for it: one more thread to be woken, for each message and on each side. A call that
does nothing, one client, 2 cores, gRPC 1.80: 0.47 ms with the newer way on both sides, 0.42 and 0.41 with the older one
in the server and in the client, 0.36 with it in both; 16 clients' calls in a second: 3960, 4280, 4360 and 4820."""


def switch(*experiments: str) -> None:
    """Set experiments, `-NAME` for off, but for those that the environment names itself."""
    named = os.environ.get(VARIABLE, "").split(",")
    known = {name.strip().removeprefix("-") for name in named}
    added = [experiment for experiment in experiments if experiment.removeprefix("-") not in known]
    os.environ[VARIABLE] = ",".join(filter(None, [*named, *added]))
