"""The gate: who gets in, and what is counted of those who do not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from server.access.clients import CLIENT, Client
from server.access.gate import Gate
from server.config import ClientLimits, Security
from server.errors import Overloaded, PermissionDenied, Unauthenticated

from .calling import ALICE, BOB, OTHER, Calls, Clock, Context, entry


def enter(gate: Gate, method: str, peer: str = "ipv4:127.0.0.1:5", metadata: Any = None) -> Client:
    """Enter in a context of its own, as a call does; returns the client that was found."""

    async def call() -> Client:
        if metadata is not None and not gate.authenticate(method, metadata):
            raise Unauthenticated
        gate.enter(method, Context(peer))
        return CLIENT.get()

    return asyncio.run(call())


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("user-agent", "test"), ("authorization", f"Bearer {token}"))


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", ALICE),),
        (("authorization", f"Basic {ALICE}"),),
        (("authorization", "Bearer"),),
        (("authorization", "Bearer "),),
        (("authorization", f"Bearer {ALICE} "),),
        (("authorization", f"Bearer {OTHER}"),),
        (("authorization", f"Bearer {ALICE}"), ("authorization", f"Bearer {OTHER}")),
        (("authorization", ALICE.encode()),),
        (("authorization-bin", f"Bearer {ALICE}"),),
    ],
)
def test_anything_but_one_good_token_is_unauthenticated(write: Callable[[str], Path], metadata: Any):
    """Nothing, another scheme, a wrong token or two of them: not let in."""
    gate = Gate(Security(tokens=write(entry("alice", ALICE))), Calls())  # type: ignore[arg-type]
    assert enter(gate, "/fewstep.v1.Sampler/Sample", metadata=bearer(ALICE)).name == "alice"
    assert enter(gate, "/s/m", metadata=(("authorization", f"bEARER {ALICE}"),)).name == "alice"
    with pytest.raises(Unauthenticated):
        enter(gate, "/fewstep.v1.Sampler/Sample", metadata=metadata)


def test_a_gate_that_nobody_authenticated_stays_shut(write: Callable[[str], Path]):
    """Where the interceptor did not run, a handler does not either; probes are let in."""
    gate = Gate(Security(tokens=write(entry("alice", ALICE))), Calls())  # type: ignore[arg-type]
    with pytest.raises(Unauthenticated):
        enter(gate, "/fewstep.v1.Sampler/Sample")
    assert enter(gate, "/inference.GRPCInferenceService/ServerLive").name == ""
    assert enter(gate, "/inference.GRPCInferenceService/ServerReady", metadata=()).name == ""
    with pytest.raises(Unauthenticated):
        enter(gate, "/grpc.health.v1.Health/Watch", metadata=())


def test_only_administrators_change_what_is_served(write: Callable[[str], Path]):
    """With tokens those whom the file names, without them this machine; all others are told so."""
    method = "/fewstep.v1.Models/UnloadModel"
    text = entry("alice", ALICE, more="administrator = true") + entry("bob", BOB)
    gate = Gate(Security(tokens=write(text)), Calls())  # type: ignore[arg-type]
    enter(gate, method, metadata=bearer(ALICE))
    with pytest.raises(PermissionDenied, match="client bob is not"):
        enter(gate, method, metadata=bearer(BOB))
    enter(gate, "/fewstep.v1.Models/ListModels", metadata=bearer(BOB))
    unguarded = Gate(Security(), Calls())  # type: ignore[arg-type]
    enter(unguarded, method)
    with pytest.raises(PermissionDenied, match="another machine"):
        enter(unguarded, method, peer="ipv4:192.0.2.7:1")
    enter(unguarded, "/fewstep.v1.Models/ListModels", peer="ipv4:192.0.2.7:1")


def test_addresses_have_the_default_limits(clock: Clock):
    """Without tokens each address has a rate of its own."""
    security = Security(client=ClientLimits(1.0))
    gate = Gate(security, Calls(), clock=clock)  # type: ignore[arg-type]
    enter(gate, "/s/m", peer="ipv4:10.0.0.1:1")
    with pytest.raises(Overloaded):
        enter(gate, "/s/m", peer="ipv4:10.0.0.1:2")
    enter(gate, "/s/m", peer="ipv4:10.0.0.2:1")
    enter(gate, "/inference.GRPCInferenceService/ServerLive", peer="ipv4:10.0.0.1:1")


def test_the_metrics_of_refused_calls_have_bounded_names(write: Callable[[str], Path]):
    """A refused call is counted under its method where that exists, and without a name where the caller made it up."""
    calls = Calls()
    gate = Gate(Security(tokens=write(entry("alice", ALICE))), calls)  # type: ignore[arg-type]
    (interceptor,) = gate.interceptors

    async def call(method: str, handler: Any) -> Any:
        async def find(details: Any) -> Any:
            return handler

        details = grpc.HandlerCallDetails()
        details.method, details.invocation_metadata = method, ()
        return await interceptor.intercept_service(find, details)

    for method, handler in (("/fewstep.v1.Sampler/Sample", object()), ("/made/up", None)):
        assert asyncio.run(call(method, handler)) is not handler
    assert calls.seen == [("Sample", "", "UNAUTHENTICATED"), ("", "", "UNAUTHENTICATED")]
