"""What a load consists of: kinds of calls with their weights, written in one line.

    ddim:1=4,ddim:8=2,iddim:4:m=0.6=2,vdrme:4=1,score:images=16=2

A kind is `SAMPLER:STEPS[:OPTION=VALUE...]` or `score[:OPTION=VALUE...]`; the number after the last `=` is its
weight. Above, 4 of 11 requests ask for 1 DDIM step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from server.client import ModelSummary

SCORE = "score"


class MixError(ValueError):
    """A mix that cannot be read or served; the message quotes the part at fault."""


@dataclass(frozen=True)
class Kind:
    """One kind of call.

    name: as it was written, without the weight. sampler: None for a score.
    model: empty until `resolve` chose one, unless the mix names it.
    options: of the request, by their names in `SampleOptions`; for a score `images`, `scales`, `false_alarm_rate`.
    """

    name: str
    weight: float
    sampler: str | None
    model: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


def parse_mix(text: str) -> tuple[Kind, ...]:
    """Read a mix.

    Raises:
        MixError: no kind, a kind twice, or a part that is wrong; quotes it.
    """
    kinds = tuple(_kind(part.strip()) for part in text.split(",") if part.strip())
    if not kinds:
        raise MixError(f"mix {text!r} names no kind of request")
    names = [kind.name for kind in kinds]
    for name in names:
        if names.count(name) > 1:
            raise MixError(f"{name!r} stands twice in the mix")
    return kinds


def resolve(
    kinds: Sequence[Kind],
    models: Sequence[ModelSummary],
    accepted: Callable[[str], Collection[int]] | None = None,
) -> tuple[Kind, ...]:
    """Give each kind the first model listed that can serve it, unless the mix named one.

    accepted: the numbers of steps that a model takes, by its name; of several with the sampler one that takes the
    kind's is chosen. Langevin chains are of any length.

    Raises:
        MixError: no model offers that sampler, or none scores; lists what there is.
    """
    return tuple(kind if kind.model else replace(kind, model=_model_for(kind, models, accepted)) for kind in kinds)


def _model_for(kind: Kind, models: Sequence[ModelSummary], accepted: Callable[[str], Collection[int]] | None) -> str:
    able = [m.name for m in models if (m.scores if kind.sampler is None else kind.sampler in m.samplers)]
    if accepted is not None and kind.sampler not in (None, "langevin"):
        able = [name for name in able if kind.options["steps"] in accepted(name)] or able
    if able:
        return able[0]
    offers = ", ".join(sorted({name for model in models for name in model.samplers})) or "none"
    scoring = ", ".join(model.name for model in models if model.scores) or "none"
    raise MixError(f"{kind.name!r}: no model of the server serves it; samplers: {offers}; models that score: {scoring}")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split("/"))


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("/"))


_SAMPLE_OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "model": (str, "a name"),
    "count": (_positive, "a whole number from 1"),
    "m": (_floats, "a number, or one a step as in 0.2/0.6"),
    "form": (str, "iterate or accumulator"),
    "eta": (float, "a number"),
    "guidance": (float, "a number"),
    "temperature": (float, "a number"),
    "step_size": (float, "a number"),
    "spacing": (str, "quadratic or linear"),
    "labels": (_integers, "a whole number, or one a sample as in 3/5"),
    "priority": (int, "a whole number"),
}
_SCORE_OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "model": (str, "a name"),
    "images": (_positive, "a whole number from 1"),
    "scales": (lambda text: tuple(text.split("/")), "names as in clean/noisy, or all"),
    "priority": (int, "a whole number"),
}


def _kind(part: str) -> Kind:
    name, equals, weight_text = part.rpartition("=")
    if not equals:
        raise MixError(f"{part!r} has no weight: write {part}=1")
    try:
        weight = float(weight_text)
    except ValueError:
        raise MixError(f"{part!r}: the weight after the last '=' must be a number, got {weight_text!r}") from None
    if not (weight > 0 and math.isfinite(weight)):
        raise MixError(f"{part!r}: the weight must be positive and finite, got {weight_text}")
    head, *rest = name.split(":")
    if not head:
        raise MixError(f"{part!r} names no sampler: write SAMPLER:STEPS or {SCORE}")
    if head == SCORE:
        options = _options(part, rest, _SCORE_OPTIONS)
        return Kind(name, weight, None, options.pop("model", ""), options)
    steps = rest.pop(0) if rest else ""
    try:
        count = _positive(steps)
    except ValueError:
        raise MixError(f"{part!r}: the steps after {head!r} must be a whole number from 1, got {steps!r}") from None
    options = _options(part, rest, _SAMPLE_OPTIONS)
    return Kind(name, weight, head, options.pop("model", ""), {"steps": count, **options})


def _options(part: str, texts: Sequence[str], known: Mapping[str, tuple[Callable[[str], Any], str]]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if name not in known:
            raise MixError(f"{part!r}: unknown option {name!r}; there are {', '.join(known)}")
        read, wanted = known[name]
        if not equals:
            raise MixError(f"{part!r}: option {name} has no value, or the weight is missing (the last '=' gives it)")
        try:
            options[name] = read(value)
        except ValueError:
            raise MixError(f"{part!r}: {name} must be {wanted}, got {value!r}") from None
    return options
