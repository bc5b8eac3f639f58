"""Messages that are wrong: bytes that are none, messages with damage, values that no request may have."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from models.card import ModelCard
from models.program import LangevinUpdate
from models.samplers import OptionError, UnsupportedError, available_samplers, compile_sample
from protos import fewstep_pb2 as pb
from protos import inference_pb2 as oip

from .contents import Message, options_of

MOST_WORK = 2000
"""Samples times steps of a damaged message that still asks for something: the oracle runs it too."""
MOST_FORCE = 0.1
"""Langevin's factor of the gradient in such a message: far above, the sign of a rounding error decides where x goes."""


def garbage(rng: random.Random) -> bytes:
    """Random bytes."""
    return rng.randbytes(rng.choice((0, 1, 3, 17, 200, 5000)))


def with_unknown_fields(rng: random.Random, data: bytes) -> bytes:
    """The same message with fields that its type does not have, of every wire type, before and behind."""
    fields = [_tag(1000, 0) + b"\x01", _tag(1001, 2) + b"\x03abc", _tag(1002, 5) + bytes(4), _tag(1003, 1) + bytes(8)]
    rng.shuffle(fields)
    cut = rng.randint(0, len(fields))
    return b"".join(fields[:cut]) + data + b"".join(fields[cut:])


def _tag(number: int, wire_type: int) -> bytes:
    value, out = number << 3 | wire_type, bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def mangled(rng: random.Random, message: Message, cards: Mapping[str, ModelCard]) -> bytes:
    """A request for samples with damage; where it still asks for something, for what the oracle can tell."""
    data = message.SerializeToString()
    while True:
        torn = _damaged(rng, data)
        if _can_be_checked(torn, cards):
            return torn


def _damaged(rng: random.Random, data: bytes) -> bytes:
    bent = bytearray(data)
    what = rng.choice(("flip", "flip", "flip", "cut", "double", "insert"))
    at = rng.randrange(len(bent))
    if what == "flip":
        for _ in range(rng.randint(1, 6)):
            bent[rng.randrange(len(bent))] ^= 1 << rng.randrange(8)
    elif what == "cut":
        del bent[at : at + rng.randint(1, 8)]
    elif what == "double":
        bent[at:at] = bent[at : at + rng.randint(1, 8)]
    else:
        bent[at:at] = rng.randbytes(rng.randint(1, 8))
    return bytes(bent)


def _can_be_checked(data: bytes, cards: Mapping[str, ModelCard]) -> bool:
    try:
        request = pb.SampleRequest.FromString(data)
        with np.errstate(over="ignore"):  # what float32 cannot hold is among what is sent
            program = compile_sample(cards[request.model], options_of(request))
    except (DecodeError, KeyError, OptionError, UnsupportedError, OverflowError):
        return True  # the server has to refuse it
    rule = program.lines[0].updates[0].rule
    tame = not isinstance(rule, LangevinUpdate) or abs(rule.gradient) <= MOST_FORCE
    return tame and len(program.lines) * request.count <= MOST_WORK


# -- values that are refused ------------------------------------------------------------------------


def _sampler_of(cards: Mapping[str, ModelCard]) -> ModelCard:
    return next(card for card in cards.values() if card.sampling is not None)


def _score(card: ModelCard, **fields: Any) -> pb.ScoreRequest:
    image = np.zeros((1, *card.image.shape), "<f4")
    given: dict[str, Any] = {"model": card.name, "images": pb.Images(shape=image.shape, raw=image.tobytes())}
    return pb.ScoreRequest(**(given | fields))


def refused(rng: random.Random, cards: Mapping[str, ModelCard]) -> tuple[Message, str, str]:
    """A message with one wrong value, the one code that it ends with, and a word of what it is refused with."""
    card = _sampler_of(cards)
    name, size = card.name, 4 * int(np.prod(card.image.shape))
    sampler = available_samplers(card)[0]
    cases: list[tuple[Message, str, str]] = [
        (pb.SampleRequest(model=rng.randbytes(6).hex()), "NOT_FOUND", name),
        (pb.SampleRequest(model=name, version=10**9), "NOT_FOUND", "version"),
        (pb.SampleRequest(model=name, steps=rng.choice((0, -1, 10**15))), "INVALID_ARGUMENT", "steps"),
        (pb.SampleRequest(model=name, count=rng.choice((0, -5, 10**6))), "INVALID_ARGUMENT", "count"),
        (pb.SampleRequest(model=name, sampler="s" * rng.choice((3, 10**5))), "INVALID_ARGUMENT", "sampler"),
        (pb.SampleRequest(model=name, encoding=9), "INVALID_ARGUMENT", "encoding"),  # type: ignore[arg-type]
        (pb.SampleRequest(model=name, priority=rng.choice((-11, 11))), "INVALID_ARGUMENT", "priority"),
        (pb.SampleRequest(model=name, sampler=sampler, temperature=1e9), "INVALID_ARGUMENT", "temperature"),
        (oip.ModelInferRequest(model_name=name), "INVALID_ARGUMENT", "SEED"),
        (_infer(name, "SEED", "FP32", [1, 1], bytes(4)), "INVALID_ARGUMENT", "SEED"),
        (_infer(name, "SEED", "UINT64", [2, 1], bytes(8)), "INVALID_ARGUMENT", "SEED"),
        (_infer(name, "SEED", "UINT64", [-1, 1], bytes(8)), "INVALID_ARGUMENT", "SEED"),
        (_infer(name, "WEED", "UINT64", [1, 1], bytes(8)), "INVALID_ARGUMENT", "WEED"),
        (_infer(f"{name}?", "SEED", "UINT64", [1, 1], bytes(8)), "NOT_FOUND", name),
    ]
    if card.labels is not None:
        cases.append((pb.SampleRequest(model=name, labels=[card.labels.count + 1]), "NOT_FOUND", "label"))
    for scorer in (card for card in cards.values() if card.energy is not None):
        shape = (1, *scorer.image.shape)
        large = (1, shape[1], shape[2] + 1, shape[3])
        cases += [
            (_score(scorer, images=pb.Images(shape=large, raw=bytes(size))), "INVALID_ARGUMENT", "images.shape"),
            (_score(scorer, images=pb.Images(shape=shape, raw=bytes(3))), "INVALID_ARGUMENT", "images.raw"),
            (_score(scorer, images=pb.Images(shape=(2**62, *shape[1:]))), "INVALID_ARGUMENT", "images.shape"),
            (_score(scorer, images=pb.Images(encoding=pb.PNG, png=[rng.randbytes(99)])), "INVALID_ARGUMENT", "png"),
            (_score(scorer, scales=["no such scale"]), "NOT_FOUND", "scales"),
            (_score(scorer, false_alarm_rate=rng.choice((0.0, 1.0, -3.0))), "INVALID_ARGUMENT", "false_alarm_rate"),
        ]
    return rng.choice(cases)


def _infer(model: str, name: str, datatype: str, shape: list[int], data: bytes) -> oip.ModelInferRequest:
    message = oip.ModelInferRequest(model_name=model, raw_input_contents=[data])
    message.inputs.add(name=name, datatype=datatype, shape=shape)
    return message


# -- values that are no numbers, and values that become none ------------------------------------------


def poisoned(rng: random.Random, cards: Mapping[str, ModelCard]) -> Message:
    """A request with NaN or an infinity in it: in an image or in an option."""
    bad = rng.choice((float("nan"), float("inf"), float("-inf")))
    scoring = [card for card in cards.values() if card.energy is not None]
    makers: list[Callable[[], Message]] = [lambda: _poisoned_option(rng, _sampler_of(cards), bad)]
    if scoring:
        makers += [lambda: _poisoned_image(rng, rng.choice(scoring), bad)] * 2
    return rng.choice(makers)()


def _poisoned_option(rng: random.Random, card: ModelCard, bad: float) -> pb.SampleRequest:
    request = pb.SampleRequest(model=card.name, temperature=bad)
    if "custom" in available_samplers(card) and rng.random() < 0.5:
        rows: list[list[float]] = rng.choice(([[bad]], [[-1.0]], [[0.0]], [[1.0], [1e308, 1e308]]))
        weights = [pb.Weights(values=row) for row in rows]
        return pb.SampleRequest(model=card.name, sampler="custom", steps=len(rows), weights=weights)
    if "iddim" in available_samplers(card) and rng.random() < 0.5:
        return pb.SampleRequest(model=card.name, sampler="iddim", steps=2, m=[0.5, bad])
    return request


def _poisoned_image(rng: random.Random, card: ModelCard, bad: float) -> Message:
    images = np.zeros((rng.randint(1, 4), *card.image.shape), "<f4")
    images.flat[rng.randrange(images.size)] = bad
    if rng.random() < 0.5:
        return _score(card, images=pb.Images(shape=images.shape, raw=images.tobytes()))
    name = f"{card.name}.score" if available_samplers(card) else card.name
    return _infer(name, "IMAGES", "FP32", list(images.shape), images.tobytes())


def diverging(rng: random.Random, cards: Mapping[str, ModelCard]) -> pb.SampleRequest | None:
    """Langevin dynamics with a step beyond what float32 holds; None where no model has dynamics.

    Smaller ones do not diverge where the model has a box: the state is clipped to it after each step.
    """
    dynamic = [card for card in cards.values() if "langevin" in available_samplers(card)]
    if not dynamic:
        return None
    return pb.SampleRequest(
        model=rng.choice(dynamic).name,
        sampler="langevin",
        steps=rng.randint(1, 20),
        step_size=rng.choice((1e300, 1e308)),
        count=rng.randint(1, 4),
        seed=rng.getrandbits(63),
    )
