"""The kinds of requests of the campaign, and for each the codes that it may end with.

A kind that is a fault has the codes that its fault allows; one that is not ends OK, whatever its neighbours do.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from models.card import ModelCard
from protos import fewstep_pb2 as pb
from protos import inference_pb2 as oip

from .contents import Content, long_content
from .malformed import diverging, garbage, mangled, poisoned, refused, with_unknown_fields
from .requests import INFER, INFER_STREAM, KILLED, METHODS, PATIENCE, SAMPLE, SCORE, STREAM, Request

LATE = "OK DEADLINE_EXCEEDED RESOURCE_EXHAUSTED"
"""What a call with little time may end with: in a crowd it may be turned away before it is read."""


@dataclass
class Drawer:
    """Draws requests of any kind; the same seed draws the same.

    versions: of models, where one is known to have been loaded; requests that name it are drawn too.
    """

    contents: Sequence[Content]
    cards: Mapping[str, ModelCard]
    rng: random.Random
    versions: dict[str, int] = field(default_factory=dict)
    drawn: int = 0
    _samples: list[Content] = field(init=False)
    _inferences: list[Content] = field(init=False)

    def __post_init__(self) -> None:
        self._samples = [content for content in self.contents if content.samples]
        self._inferences = [c for c in self.contents if isinstance(c.message, oip.ModelInferRequest)]
        self._long = [long_content(card, seed) for card in self.cards.values() if card.sampling for seed in range(2)]

    @property
    def all_contents(self) -> list[Content]:
        """Everything whose result the oracle must know."""
        return [*self.contents, *self._long]

    def draw(self, kind: str) -> Request:
        """A request of that kind, with the next number."""
        return KINDS[kind](self, self.number())

    def call(self, content: Content) -> Request:
        """A request for that content, without any fault."""
        return _unary("call", self.number(), content, "OK")

    def number(self) -> int:
        """The next request's."""
        self.drawn += 1
        return self.drawn

    # -- parts -----------------------------------------------------------------------------------

    def content(self) -> Content:
        return self.rng.choice(self.contents)

    def streamed(self) -> Content:
        """Native samples, which can be streamed."""
        return self.rng.choice(self._samples)

    def inferences(self) -> tuple[Content, ...]:
        return tuple(self.rng.choices(self._inferences, k=self.rng.randint(1, 6)))

    def long(self) -> Content:
        return self.rng.choice(self._long)

    def seconds(self, low: float, high: float) -> float:
        """Spread evenly over the orders of magnitude between low and high."""
        return low * (high / low) ** self.rng.random()


def _unary(kind: str, number: int, content: Content, allowed: str, **more: object) -> Request:
    data = (content.message.SerializeToString(),)
    return Request(
        number,
        kind,
        METHODS[type(content.message)],
        data,
        frozenset(allowed.split()),
        (content,),
        **more,  # type: ignore[arg-type]
    )


def _stream(kind: str, number: int, content: Content, allowed: str, **more: object) -> Request:
    data = (content.message.SerializeToString(),)
    return Request(number, kind, STREAM, data, frozenset(allowed.split()), (content,), **more)  # type: ignore[arg-type]


# -- no fault -------------------------------------------------------------------------------------


def _call(d: Drawer, number: int) -> Request:
    return _unary("call", number, d.content(), "OK")


def _streamed(d: Drawer, number: int) -> Request:
    return _stream("stream", number, d.streamed(), "OK")


def _long_stream(d: Drawer, number: int) -> Request:
    return _stream("long stream", number, d.long(), "OK")


def _infer_stream(d: Drawer, number: int) -> Request:
    contents = d.inferences()
    data = tuple(content.message.SerializeToString() for content in contents)
    return Request(number, "infer stream", INFER_STREAM, data, frozenset(["OK"]), contents)


def _connections(d: Drawer, number: int) -> Request:
    return _unary("connections", number, d.content(), "OK", connections=d.rng.randint(5, 25))


def _pinned(d: Drawer, number: int) -> Request:
    """A version by its number, which may be unloaded at any time."""
    content = d.streamed()
    message = pb.SampleRequest.FromString(content.message.SerializeToString())
    message.version = d.versions.get(content.model, 0)
    pinned = Content(message, (message,))
    return _unary("pinned", number, pinned, "OK NOT_FOUND" if message.version else "OK")


def _unknown_fields(d: Drawer, number: int) -> Request:
    """Fields of a later version of the protocol are ignored, and the rest is answered."""
    content = d.content()
    data = (with_unknown_fields(d.rng, content.message.SerializeToString()),)
    return Request(number, "unknown fields", METHODS[type(content.message)], data, frozenset(["OK"]), (content,))


# -- callers that leave, and deadlines ------------------------------------------------------------


def _cancel(d: Drawer, number: int) -> Request:
    content = d.long() if d.rng.random() < 0.4 else d.content()
    return _unary("cancel", number, content, "OK CANCELLED", cancel_after=d.seconds(1e-4, 0.5))


def _cancel_stream(d: Drawer, number: int) -> Request:
    return _stream("cancel stream", number, d.long(), "OK CANCELLED", cancel_after=d.seconds(1e-4, 0.5))


def _hopeless(d: Drawer, number: int) -> Request:
    return _unary("hopeless deadline", number, d.long(), LATE, timeout=d.seconds(1e-6, 5e-3))


def _tight(d: Drawer, number: int) -> Request:
    content, make = d.rng.choice(((d.long(), _stream), (d.streamed(), _stream), (d.content(), _unary)))
    return make("tight deadline", number, content, LATE, timeout=d.seconds(5e-3, 2.0))


def _generous(d: Drawer, number: int) -> Request:
    return _unary("generous deadline", number, d.content(), "OK", timeout=PATIENCE - 1.0)


def _own_timeout(d: Drawer, number: int) -> Request:
    """The deadline of the Open Inference Protocol, which travels in the message."""
    content = d.inferences()[0]
    message = oip.ModelInferRequest.FromString(content.message.SerializeToString())
    message.parameters["timeout"].int64_param = int(1e6 * d.seconds(1e-6, 1.0))
    data = (message.SerializeToString(),)
    return Request(number, "own timeout", INFER, data, frozenset(["OK", "DEADLINE_EXCEEDED"]), (content,))


# -- what no message should be --------------------------------------------------------------------


def _garbage(d: Drawer, number: int) -> Request:
    method = d.rng.choice((SAMPLE, STREAM, SCORE, INFER, "/fewstep.v1.Models/DescribeModel"))
    return Request(number, "garbage", method, (garbage(d.rng),), frozenset(["INVALID_ARGUMENT", "NOT_FOUND"]))


def _mangled(d: Drawer, number: int) -> Request:
    """Flipped bits, torn and doubled parts: what still is a message may be any other request, or this one.

    INTERNAL is right only where the offline loop diverges too (`bench.faults.verdicts`).
    """
    data = mangled(d.rng, d.streamed().message, d.cards)
    allowed = "OK INVALID_ARGUMENT NOT_FOUND FAILED_PRECONDITION INTERNAL DEADLINE_EXCEEDED"
    return Request(number, "mangled", SAMPLE, (data,), frozenset(allowed.split()), timeout=PATIENCE - 1.0)


def _wrong_type(d: Drawer, number: int) -> Request:
    """A message of one type where another is expected: fields of the wrong kind are unknown ones."""
    content = d.content()
    method = d.rng.choice([path for kind, path in METHODS.items() if not isinstance(content.message, kind)])
    allowed = frozenset(["OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"])
    return Request(number, "wrong type", method, (content.message.SerializeToString(),), allowed)


def _refused(d: Drawer, number: int) -> Request:
    message, code, says = refused(d.rng, d.cards)
    method = METHODS[type(message)]
    return Request(number, "refused", method, (message.SerializeToString(),), frozenset([code]), says=says)


def _poisoned(d: Drawer, number: int) -> Request:
    message = poisoned(d.rng, d.cards)
    allowed = frozenset(["INVALID_ARGUMENT"])
    return Request(number, "poisoned", METHODS[type(message)], (message.SerializeToString(),), allowed)


def _diverging(d: Drawer, number: int) -> Request:
    """Options that are in range by themselves and make the state overflow: the row fails, and no other."""
    message = diverging(d.rng, d.cards)
    if message is None:  # no model has dynamics that can diverge
        return _poisoned(d, number)
    allowed = frozenset(["INTERNAL", "INVALID_ARGUMENT"])  # at its step, or because it is foreseen
    return Request(number, "diverging", SAMPLE, (message.SerializeToString(),), allowed)


# -- clients that are no good ---------------------------------------------------------------------


def _crawl(d: Drawer, number: int) -> Request:
    return _stream("slow reader", number, d.long(), "OK", read_every=d.seconds(5e-3, 0.05), connections=1)


def _mute(d: Drawer, number: int) -> Request:
    """Never reads, and leaves: its rows must not wait for it."""
    leaves = {"cancel_after": d.seconds(0.5, 3.0)} if d.rng.random() < 0.5 else {"timeout": d.seconds(0.5, 3.0)}
    allowed = "CANCELLED DEADLINE_EXCEEDED"
    return _stream("never reads", number, d.long(), allowed, read_every=float("inf"), connections=1, **leaves)


def _killed(d: Drawer, number: int) -> Request:
    return _stream("killed client", number, d.long(), KILLED, killed=True)


KINDS: Mapping[str, Callable[[Drawer, int], Request]] = {
    "call": _call,
    "stream": _streamed,
    "long stream": _long_stream,
    "infer stream": _infer_stream,
    "connections": _connections,
    "pinned": _pinned,
    "unknown fields": _unknown_fields,
    "cancel": _cancel,
    "cancel stream": _cancel_stream,
    "hopeless deadline": _hopeless,
    "tight deadline": _tight,
    "generous deadline": _generous,
    "own timeout": _own_timeout,
    "garbage": _garbage,
    "mangled": _mangled,
    "wrong type": _wrong_type,
    "refused": _refused,
    "poisoned": _poisoned,
    "diverging": _diverging,
    "slow reader": _crawl,
    "never reads": _mute,
    "killed client": _killed,
}
