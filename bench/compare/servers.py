"""The servers of a comparison: all are started at first, and all but the one that is measured are held still.

Idle servers are not idle: on two cores LitServe's workers took 0.29 of a core with nothing to do and Ray 0.15, which
would be charged to whichever server is measured. Starting each anew for every round would be as fair, but Ray alone
takes half a minute. A held server (SIGSTOP) takes nothing and goes on where it was.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from bench.mix import Call, Kind
from bench.peers.command import state_of
from bench.peers.environments import PeerEnvironmentError
from bench.peers.launch import hold, release, start
from bench.peers.registry import Peer
from bench.process import ServerFailed, ServingProcess
from bench.targets import Target, open_target

from .caller import Caller, CallerError, Draw, connect

PROBE = Draw("digits-ddpm", "ddim", 1, (7,))
WAKE_SECONDS = 60.0
IMAGE_SHAPE = (1, 8, 8)
"""Of the images that are scored: digits."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server of the comparison. version: of the peer's package."""

    peer: Peer
    version: str
    process: ServingProcess
    address: str

    @property
    def name(self) -> str:
        return self.peer.name

    def target(self) -> Target:
        """What a load is sent to, not yet connected."""
        if self.peer.protocol == "http":
            return open_target("http", f"http://{self.address}", IMAGE_SHAPE)
        return open_target({"oip": "oip", "native": "fewstep"}[self.peer.protocol], self.address)

    def caller(self, protocol: str | None = None) -> Caller:
        """One client that waits for each answer; by default in the peer's protocol."""
        return connect(protocol or self.peer.protocol, self.address)

    def kinds(self, kinds: Sequence[Kind], patience: float | None = None) -> tuple[Kind, ...]:
        """The kinds as the peer's protocol names them. patience: seconds, told to servers that have a word for it."""
        if self.peer.protocol != "oip":
            return tuple(kinds)
        told = {} if patience is None else {"timeout": round(1e6 * patience)}
        return tuple(
            replace(
                kind,
                model=f"{kind.model}.score" if kind.call is Call.SCORE else kind.model,
                options={**kind.options, **told},
            )
            for kind in kinds
        )

    def wake(self) -> None:
        """Ask until it answers: behind whatever it still has to do, and past connections that died while it was held.

        Raises:
            ServerFailed: it does not answer within a minute.
        """
        deadline = time.monotonic() + WAKE_SECONDS
        while True:
            try:
                with self.caller() as caller:
                    caller.sampling(PROBE)()
                    return
            except CallerError as error:
                if time.monotonic() > deadline:
                    raise ServerFailed(f"{self.peer.title} does not answer: {error}") from error
                time.sleep(0.05)

    @contextlib.contextmanager
    def turn(self) -> Iterator[Self]:
        """While it is measured; otherwise it is held."""
        release(self.process)
        try:
            self.wake()
            yield self
        finally:
            hold(self.process)


@contextlib.contextmanager
def running(
    peers: Sequence[Peer],
    repository: Path,
    logs: Path,
    models: Sequence[str],
    threads: int,
    *,
    report: Callable[[str], None],
    warn: Callable[[str], None],
) -> Iterator[tuple[list[Running], dict[str, str]]]:
    """The servers that can be started, held, and why the others are left out, by name.

    models: what a server of the Open Inference Protocol must have before it is ready. threads: of each server's engine.
    report: told what is being started. warn: told what went wrong at the end.
    """
    with contextlib.ExitStack() as stack:
        started: list[Running] = []
        left_out: dict[str, str] = {}
        for peer in peers:
            report(peer.title)
            try:
                log = logs / f"{peer.name}.log"
                process = start(peer, repository, log, ["--threads", str(threads)], models=models)
                stack.enter_context(_served(process, warn))
            except (PeerEnvironmentError, ServerFailed) as error:
                left_out[peer.name] = str(error)
                continue
            server = Running(peer, state_of(peer), process, process.address)
            hold(process)
            started.append(server)
        yield started, left_out


@contextlib.contextmanager
def _served(process: ServingProcess, warn: Callable[[str], None]) -> Iterator[None]:
    """As the process's own context, but it is released before it is stopped, and a bad stop is only told of.

    A held process would not see the signal that ends it; and what was measured is not lost for how a server ends.

    Raises:
        ServerFailed: it did not start.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(process)
        try:
            yield
        finally:
            try:
                release(process)
                stack.close()
            except ServerFailed as error:
                warn(str(error))
