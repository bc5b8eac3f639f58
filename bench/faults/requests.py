"""One request of the campaign: what is sent, how, and with which codes it may end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from protos import fewstep_pb2 as pb
from protos import inference_pb2 as oip

from .contents import Content, Message

SAMPLE = "/fewstep.v1.Sampler/Sample"
STREAM = "/fewstep.v1.Sampler/SampleStream"
SCORE = "/fewstep.v1.Scorer/Score"
INFER = "/inference.GRPCInferenceService/ModelInfer"
INFER_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
METHODS: Mapping[type[Message], str] = {pb.SampleRequest: SAMPLE, pb.ScoreRequest: SCORE, oip.ModelInferRequest: INFER}

KILLED = "KILLED"
"""In place of a status code: the client was killed, as it was to be."""
HUNG = "HUNG"
"""In place of a status code: it had not ended within its kind's bound."""

MOST_HEX = 64
"""Bytes of a message without a known content that a line about it shows."""
PATIENCE = 30.0
"""Seconds that any request may take, behind all the others of the campaign."""


@dataclass(frozen=True, eq=False)
class Request:
    """One request to send.

    data: its messages; more than one only for a stream of them. contents: what they ask for, where that is known.
    allowed: codes that it may end with. method: its path. timeout: seconds of its deadline. cancel_after: seconds
    until its caller leaves. read_every: seconds between two reads of a stream; infinity: it is never read.
    connections: how many clients of their own send it. killed: by a process that is killed amid the stream.
    says: text that must be part of the message that it is refused with.
    """

    number: int
    kind: str
    method: str
    data: tuple[bytes, ...]
    allowed: frozenset[str]
    contents: tuple[Content, ...] = ()
    timeout: float | None = None
    cancel_after: float | None = None
    read_every: float = 0.0
    connections: int = 0
    killed: bool = False
    says: str = ""
    patience: float = PATIENCE

    def line(self) -> str:
        """What was asked, in one line."""
        about = "; ".join(content.line() for content in self.contents) or _hex(self.data[0])
        limits = [
            f"{name} {value:.3g} s"
            for name, value in (("deadline", self.timeout), ("cancelled after", self.cancel_after))
            if value is not None
        ]
        return f"#{self.number} {self.kind} {self.method}: {about}" + "".join(f", {limit}" for limit in limits)


def _hex(data: bytes) -> str:
    return f"{len(data)} bytes {data[:MOST_HEX].hex()}{'...' if len(data) > MOST_HEX else ''}"
