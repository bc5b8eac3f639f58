"""The protocol that a load needs of a server, and what comes back of one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from ..mix import Kind

CONNECT_TIMEOUT = 10.0
"""Seconds that a server has to answer for the first time."""
BAD_ANSWER = "BAD_ANSWER"
"""In place of a status code: the server said that all is well, and sent something else than what was asked for."""


class TargetError(Exception):
    """A server that cannot be measured; the message begins with its address."""


class CallFailed(Exception):
    """A call that failed. code: the name of the gRPC status, `HTTP_503` and the like, or `BAD_ANSWER`."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server itself reported of a call, zero where it reports nothing; times in seconds.

    queue_seconds: from admission to the first step. compute_seconds: in the steps that the request took part in.
    network_seconds: of these, in the network itself. encode_seconds: making the response.
    server_seconds: all in all, within the server.
    mean_batch_rows: network rows in the batches of those steps.
    rows: samples, energies or rows of outputs that came back, counted here.
    """

    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    network_seconds: float = 0.0
    encode_seconds: float = 0.0
    server_seconds: float = 0.0
    mean_batch_rows: float = 0.0
    rows: int = 0


class Target(Protocol):
    """A server, once it is connected; an asynchronous context manager, of one event loop.

    name: of the protocol and, where there may be several, of the server. about: what it says of itself, once connected.
    Entering it raises TargetError where nothing answers.
    """

    name: str
    about: Mapping[str, str]

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def prepare(self, kinds: Sequence[Kind]) -> tuple[Kind, ...]:
        """Look up what messages of these kinds need, and give each kind the model that it goes to.

        Raises:
            MixError: the server cannot serve a kind; quotes it. TargetError: it does not say what it serves.
        """

    def message(self, kind: Kind, seed: int) -> Any:
        """A call of a prepared kind, ready to be sent as it is; all that can be done before the clock starts.

        seed: keys the noise of the samples; images to score and other inputs are drawn by it here.
        """

    async def call(self, message: Any, within: float) -> Answer:
        """Send a message and wait for its answer. within: seconds, the deadline of servers that know deadlines.

        Raises:
            CallFailed: the call did not end well.
        """


def open_target(protocol: str, address: str, image_shape: tuple[int, int, int] | None = None) -> Target:
    """The target of a protocol, not yet connected.

    protocol: fewstep, oip or http. address: HOST:PORT, for http a URL. image_shape: (channels, height, width) of images
    to score, which a server of plain HTTP cannot be asked for.

    Raises:
        ValueError: there is no such protocol, or the URL is none. TargetError: a library for it is not installed.
    """
    from .native import NativeTarget
    from .oip import OipTarget

    if protocol == "fewstep":
        return NativeTarget(address)
    if protocol == "oip":
        return OipTarget(address)
    if protocol == "http":
        try:
            from .http import HttpTarget
        except ModuleNotFoundError as error:
            raise TargetError(f"{address}: HTTP needs the package {error.name}, of the extra `bench`") from error
        return HttpTarget(address, image_shape)
    raise ValueError(f"protocol: must be fewstep, oip or http, got {protocol!r}")
