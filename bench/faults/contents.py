"""What requests of the campaign ask for: a pool of distinct contents, so that each has its offline result once.

A content is one message of either API, and the native requests that ask for the same thing: an Open Inference
Protocol request for n seeds is n native requests for one sample each. The oracle knows native requests only.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from models.card import ModelCard
from models.samplers import SAMPLERS, OptionError, SampleOptions, available_samplers, compile_sample
from protos import fewstep_pb2 as pb
from protos import inference_pb2 as oip
from server.client.images import to_pixels

Native = pb.SampleRequest | pb.ScoreRequest
Message = Native | oip.ModelInferRequest

MOST_STEPS = 40
MOST_SAMPLES = 8
LONG_CHAIN = 120
"""Langevin steps."""


@dataclass(frozen=True, eq=False)
class Content:
    """One thing to ask for. same: the native requests whose results, one after the other, are its answer."""

    message: Message
    same: tuple[Native, ...]

    @property
    def model(self) -> str:
        """The model's own name."""
        return self.same[0].model

    @property
    def samples(self) -> bool:
        """Whether it is a native request for samples, which can also be asked for as a stream."""
        return isinstance(self.message, pb.SampleRequest)

    def line(self) -> str:
        """What it asks for, in one line, for whoever looks for the request that broke a promise."""
        first = self.same[0]
        if isinstance(first, pb.ScoreRequest):
            images = len(first.images.png) or first.images.shape[0]
            what = f"score {images} images, scales {','.join(first.scales) or 'default'}"
        else:
            what = f"{first.sampler or 'default'}:{first.steps or 'default'}, {first.count * len(self.same)} samples"
        urgency = f", priority {first.priority}" if first.priority else ""
        return f"{type(self.message).__name__} {first.model} {what}, seed {first.seed}{urgency}"


COVERED = frozenset({"ddim", "iddim", "radical", "custom", "ancestral", "vdrme", "langevin"})


def covers(card: ModelCard) -> bool:
    """Whether the campaign knows how to ask a model: its samplers are covered, and its images have a PNG form.

    Left out are methods with options of their own; long chains among them magnify rounding beyond any tolerance that
    would still tell a wrong picture.
    """
    return set(available_samplers(card)) <= COVERED and card.image.channels in (1, 3)


def draw_contents(cards: Mapping[str, ModelCard], count: int, seed: int) -> list[Content]:
    """`count` contents over all models, samplers, scales and both APIs; the same arguments draw the same.

    Raises:
        ValueError: no model draws samples.
    """
    rng = random.Random(seed)
    sampling = [card for card in cards.values() if available_samplers(card)]
    scoring = [card for card in cards.values() if card.energy is not None]
    if not sampling:
        raise ValueError(f"none of the models draws samples: {', '.join(cards) or 'there is none'}")
    makers: list[Callable[[], Content]] = [
        lambda: _native(_sample(rng, rng.choice(sampling))),
        lambda: _inferred_samples(rng, rng.choice(sampling)),
        *([lambda: _native(_score(rng, rng.choice(scoring)))] if scoring else []),
        *([lambda: _inferred_scores(rng, rng.choice(scoring))] if scoring else []),
    ]
    shares = (6, 2, 2, 1)[: len(makers)]
    drawn = [make() for make in makers]  # each at least once
    drawn += [make() for make in rng.choices(makers, shares, k=max(0, count - len(makers)))]
    return drawn[:count]


def long_content(card: ModelCard, seed: int, *, count: int = 2) -> Content:
    """Many steps: long enough to be left, killed or read slowly in the midst."""
    request = pb.SampleRequest(model=card.name, count=count, seed=seed)
    if "langevin" in available_samplers(card):
        # Small steps without noise, so that rounding does not grow along the chain.
        request.MergeFrom(pb.SampleRequest(sampler="langevin", steps=LONG_CHAIN, step_size=1e-5, temperature=0.0))
    elif card.sampling is not None:
        request.MergeFrom(pb.SampleRequest(steps=max(card.sampling.accepted_steps()), spacing="linear"))
    return _native(request)


def _native(message: Native) -> Content:
    return Content(message, (message,))


# -- samples --------------------------------------------------------------------------------------


def _sample(rng: random.Random, card: ModelCard) -> pb.SampleRequest:
    """A request that the model can serve: options are drawn until they compile."""
    while True:
        fields = _options(rng, card)
        count = rng.randint(1, MOST_SAMPLES)
        options = {name: value for name, value in fields.items() if value is not None}
        weights = options.pop("weights", ())
        request = pb.SampleRequest(
            model=card.name,
            count=count,
            seed=rng.getrandbits(rng.choice((8, 53, 64))),
            labels=_labels(rng, card, str(options["sampler"]), count),
            encoding=pb.PNG if card.image.channels in (1, 3) and rng.random() < 0.25 else pb.RAW,
            priority=rng.randint(-10, 10),
            weights=[pb.Weights(values=row) for row in weights],
            **options,
        )
        try:
            compile_sample(card, options_of(request))
        except OptionError:  # e.g. a spacing that repeats times at this number of steps
            continue
        return request


def options_of(request: pb.SampleRequest) -> SampleOptions:
    """The options of a native request, read by the campaign itself and not by the server's code."""
    given: dict[str, Any] = {"weights": tuple(tuple(row.values) for row in request.weights)}
    for name in SampleOptions.__dataclass_fields__.keys() - given:
        value = getattr(request, name)
        if request.DESCRIPTOR.fields_by_name[name].has_presence:
            given[name] = value if request.HasField(name) else None
        else:
            given[name] = value or None if isinstance(value, str) else tuple(value)
    return SampleOptions(**given)


def _options(rng: random.Random, card: ModelCard) -> dict[str, Any]:
    sampler = rng.choice(available_samplers(card))
    known = SAMPLERS[sampler].options
    grids = card.sampling is not None and bool(card.sampling.grids) and sampler != "langevin"
    accepted = card.sampling.accepted_steps() if card.sampling is not None and grids else range(1, MOST_STEPS + 1)
    steps = rng.choice(accepted) if grids or rng.random() < 0.1 else rng.randint(1, 12)
    fields: dict[str, Any] = {"sampler": sampler, "steps": steps, "temperature": rng.choice((None, None, 0.3, 0.9))}
    if "m" in known:
        fields["m"] = rng.choice((None, [rng.random()], [rng.random() for _ in range(steps)]))
        fields["form"] = rng.choice((None, "iterate", "accumulator"))
    if "eta" in known and fields.get("form") != "accumulator":
        fields["eta"] = rng.choice((None, None, rng.random()))
    if "guidance" in known and card.labels is not None and card.labels.null is not None:
        fields["guidance"] = rng.choice((None, None, rng.uniform(0.0, 3.0)))
    if "spacing" in known:
        fields["spacing"] = rng.choice((None, "linear", "quadratic"))
    if "weights" in known:
        fields["weights"] = [[rng.random() + 0.01 for _ in range(row + 1)] for row in range(steps)]
    if "step_size" in known:
        fields["step_size"] = rng.choice((None, 1e-4, 1e-3))
    return fields


def _labels(rng: random.Random, card: ModelCard, sampler: str, count: int) -> list[int]:
    if card.labels is None or sampler == "langevin":
        return []
    one = [rng.randrange(card.labels.count)]
    each = [rng.randrange(card.labels.count) for _ in range(count)]
    return rng.choice((one, each) if card.labels.null is None else ([], one, each))


def _inferred_samples(rng: random.Random, card: ModelCard) -> Content:
    """The Open Inference Protocol: one row a seed, options as parameters, numbers now as numbers and now as text."""
    native = _sample(rng, card)
    native.ClearField("encoding")
    native.ClearField("priority")
    seeds = [rng.getrandbits(64) for _ in range(min(native.count, 4))]
    labels = (list(native.labels) * len(seeds))[: len(seeds)]
    same = []
    for index, seed in enumerate(seeds):
        one = pb.SampleRequest()
        one.CopyFrom(native)
        one.count, one.seed = 1, seed
        one.ClearField("labels")
        one.labels.extend(labels[index : index + 1])
        same.append(one)
    message = oip.ModelInferRequest(model_name=card.name, id=f"{rng.getrandbits(32):x}")
    _add_input(message, "SEED", "UINT64", np.array(seeds, dtype="<u8").reshape(-1, 1))
    if labels:
        _add_input(message, "LABEL", "INT64", np.array(labels, dtype="<i8").reshape(-1, 1))
    _add_parameters(rng, message, native)
    return Content(message, tuple(same))


def _add_parameters(rng: random.Random, message: oip.ModelInferRequest, native: pb.SampleRequest) -> None:
    for field, value in native.ListFields():
        name = field.name
        if name in ("sampler", "spacing", "form"):
            message.parameters[name].string_param = value
        elif name == "m":
            message.parameters[name].string_param = ",".join(map(repr, value))
        elif name == "weights":
            message.parameters[name].string_param = ";".join(",".join(map(repr, row.values)) for row in value)
        elif name == "steps" and rng.random() < 0.5:
            message.parameters[name].int64_param = value
        elif name in ("eta", "guidance", "temperature", "step_size") and rng.random() < 0.5:
            message.parameters[name].double_param = value
        elif name in ("steps", "eta", "guidance", "temperature", "step_size"):
            message.parameters[name].string_param = repr(value)
    message.parameters["priority"].int64_param = rng.randint(0, 21)


def _add_input(message: oip.ModelInferRequest, name: str, datatype: str, array: np.ndarray) -> None:
    message.inputs.add(name=name, datatype=datatype, shape=array.shape)
    message.raw_input_contents.append(array.tobytes())


# -- scores ---------------------------------------------------------------------------------------


def _score(rng: random.Random, card: ModelCard, *, png: bool = True) -> pb.ScoreRequest:
    """Random images between flat grey and noise over the whole range, at one scale, a few or all."""
    if card.energy is None:
        raise ValueError(f"{card.name} has no energy to score with")
    count, spec = rng.randint(1, MOST_SAMPLES), card.image
    noise = np.random.default_rng(rng.getrandbits(32)).uniform(-1.0, 1.0, (count, *spec.shape)) * rng.random()
    images = (spec.low + (noise + 1.0) / 2.0 * (spec.high - spec.low)).astype("<f4")
    names = [scale.name for scale in card.energy.scales]
    request = pb.ScoreRequest(
        model=card.name,
        scales=rng.choice(([], ["all"], rng.sample(names, rng.randint(1, min(3, len(names)))))),
        seed=rng.getrandbits(rng.choice((8, 53, 64))),
        priority=rng.randint(-10, 10),
    )
    if all(scale.calibration for scale in card.energy.scales) and rng.random() < 0.5:
        request.false_alarm_rate = rng.uniform(0.01, 0.5)
    if png and spec.channels in (1, 3) and rng.random() < 0.25:
        request.images.CopyFrom(png_images(images, spec.low, spec.high))
    else:
        request.images.CopyFrom(pb.Images(encoding=pb.RAW, shape=images.shape, raw=images.tobytes()))
    return request


def png_images(images: np.ndarray, low: float, high: float) -> pb.Images:
    """Images `(count, channels, height, width)` in [low, high], rounded to PNG files."""
    files = []
    for pixels in to_pixels(images, low, high):
        buffer = io.BytesIO()
        Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(
            buffer, "PNG"
        )
        files.append(buffer.getvalue())
    return pb.Images(encoding=pb.PNG, png=files)


def _inferred_scores(rng: random.Random, card: ModelCard) -> Content:
    native = _score(rng, card, png=False)
    native.ClearField("priority")
    name = f"{card.name}.score" if available_samplers(card) else card.name  # a model that does both has two names
    message = oip.ModelInferRequest(model_name=name, id=f"{rng.getrandbits(32):x}")
    images = np.frombuffer(native.images.raw, "<f4").reshape(tuple(native.images.shape))
    _add_input(message, "IMAGES", "FP32", images)
    message.parameters["seed"].uint64_param = native.seed
    if native.scales:
        message.parameters["scales"].string_param = ",".join(native.scales)
    if native.HasField("false_alarm_rate"):
        message.parameters["false_alarm_rate"].double_param = native.false_alarm_rate
    return Content(message, (native,))
