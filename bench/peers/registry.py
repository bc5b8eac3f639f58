"""Which peers there are, and how each is started and spoken to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Protocol = Literal["native", "oip", "http"]


@dataclass(frozen=True, slots=True)
class Peer:
    """A server to compare with.

    module: below `bench.peers`, run as a process of its own; None: `python -m server`. arguments: of either.
    environment: name of the Python environment that it runs in, see `environments`; None: this one.
    package: whose version stands for the peer's. health: of an HTTP server, the path that answers 200 when it is ready.
    variables: of its environment.
    """

    name: str
    title: str
    protocol: Protocol
    module: str | None = None
    environment: str | None = None
    package: str | None = None
    health: str = ""
    arguments: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)


FEWSTEP = "fewstep"
REQUEST_LEVEL = "fewstep-request"

RAY = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    # What its guide to high throughput sets: one event loop in a process, and no log line a request.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # on two cores its own processes are in each other's way at first
}

PEERS = {
    peer.name: peer
    for peer in (
        Peer(FEWSTEP, "fewstep", "oip"),
        Peer(REQUEST_LEVEL, "fewstep, whole requests", "oip", arguments=("--batching", "request")),
        Peer("triton", "Triton (pytriton)", "oip", "triton", "triton", "nvidia-pytriton"),
        Peer("ray", "Ray Serve", "http", "ray_serve", "ray", "ray", health="/-/healthz", variables=RAY),
        Peer("litserve", "LitServe", "http", "lit_serve", "litserve", "litserve", health="/health"),
        Peer("bentoml", "BentoML", "http", "bento", "bentoml", "bentoml", health="/readyz"),
        Peer("grpc", "grpcio, no batching", "oip", "plain_grpc", package="grpcio"),
    )
}


def find_peer(name: str) -> Peer:
    """A peer by its name, or by NAME@MILLISECONDS: with batches that may wait so long to be filled.

    Raises:
        ValueError: there is none, or its batches have no such setting.
    """
    known, at, delay = name.partition("@")
    peer = PEERS.get(known)
    if peer is None:
        raise ValueError(f"must be of {', '.join(PEERS)}, got {name}")
    if not at:
        return peer
    if peer.environment is None:
        raise ValueError(f"{known} has no delay that could be {delay or 'empty'}")
    try:
        seconds = float(delay) / 1e3
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 60:
        raise ValueError(f"a delay is a number of milliseconds, got {name}")
    return replace(peer, name=name, title=f"{peer.title}, {delay} ms", arguments=("--delay", repr(seconds)))
