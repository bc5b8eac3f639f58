"""What a load consists of: kinds of calls with their weights, written in one line.

    ddim:1=4,ddim:8:count=4:timeout=0.2=2,iddim:4:m=0.6=2,vdrme:4=1,score:images=16=2

A kind is `SAMPLER:STEPS[:OPTION=VALUE...]`, `score[:OPTION=VALUE...]` or, of any model of an Open Inference Protocol
server, `infer:model=NAME[:OPTION=VALUE...]`; the number after the last `=` is its weight. Above, 4 of 11 requests ask
for 1 DDIM step, and 2 of 11 for four samples within 0.2 s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from server.client import ModelSummary


class Call(Enum):
    """What a kind asks for. INFER: an inference of a model that need not be one of ours."""

    SAMPLE = "sample"
    SCORE = "score"
    INFER = "infer"


class MixError(ValueError):
    """A mix that cannot be read or served; the message quotes the part at fault."""


class MissingValue(MixError):
    """An option without a value; in a mix perhaps because the weight was left out and its value taken for one."""


@dataclass(frozen=True)
class Kind:
    """One kind of call.

    name: as it was written, without the weight. sampler: of a call for samples.
    model: empty until one was chosen, unless the mix names it.
    options: of a sample by their names in `SampleOptions`; of a score `images`, `scales`, `priority`; of an inference
    `rows`. timeout: seconds that a call may take, None for the load's own.
    """

    name: str
    weight: float
    call: Call
    sampler: str = ""
    model: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    timeout: float | None = None

    @property
    def rows(self) -> int:
        """Samples, images or rows of inputs in one call."""
        return int(self.options.get({Call.SAMPLE: "count", Call.SCORE: "images", Call.INFER: "rows"}[self.call], 1))


def parse_mix(text: str) -> tuple[Kind, ...]:
    """Read a mix.

    Raises:
        MixError: no kind, a kind twice, or a part that is wrong; quotes it.
    """
    kinds = tuple(_weighted(part.strip()) for part in text.split(",") if part.strip())
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
    samples = kind.call is Call.SAMPLE
    able = [m.name for m in models if (kind.sampler in m.samplers if samples else m.scores)]
    if accepted is not None and samples and kind.sampler != "langevin":
        able = [name for name in able if kind.options["steps"] in accepted(name)] or able
    if able:
        return able[0]
    offers = ", ".join(sorted({name for model in models for name in model.samplers})) or "none"
    scoring = ", ".join(model.name for model in models if model.scores) or "none"
    raise MixError(f"{kind.name!r}: no model of the server serves it; samplers: {offers}; models that score: {scoring}")


def parse_kind(name: str, weight: float = 1.0) -> Kind:
    """Read one kind, without a weight.

    Raises:
        MixError: as `parse_mix`.
    """
    head, *rest = name.split(":")
    if not head:
        raise MixError(f"{name!r} names no sampler: write SAMPLER:STEPS, {Call.SCORE.value} or {Call.INFER.value}")
    steps = {}
    if head in (Call.SCORE.value, Call.INFER.value):
        call = Call(head)
    else:
        call = Call.SAMPLE
        text = rest.pop(0) if rest else ""
        try:
            steps["steps"] = _positive(text)
        except ValueError:
            raise MixError(f"{name!r}: the steps after {head!r} must be a whole number from 1, got {text!r}") from None
    options = _options(name, rest, _OPTIONS[call])
    model, timeout = options.pop("model", ""), options.pop("timeout", None)
    if call is Call.INFER and not model:
        raise MixError(f"{name!r} names no model: write {head}:model=NAME")
    sampler = head if call is Call.SAMPLE else ""
    return Kind(name, weight, call, sampler, model, {**steps, **options}, timeout)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError(text)
    return value


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split("/"))


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("/"))


_COMMON: dict[str, tuple[Callable[[str], Any], str]] = {
    "model": (str, "a name"),
    "timeout": (_seconds, "seconds above 0"),
}
_OPTIONS: dict[Call, dict[str, tuple[Callable[[str], Any], str]]] = {
    Call.SAMPLE: {
        **_COMMON,
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
    },
    Call.SCORE: {
        **_COMMON,
        "images": (_positive, "a whole number from 1"),
        "scales": (lambda text: tuple(text.split("/")), "names as in clean/noisy, or all"),
        "priority": (int, "a whole number"),
    },
    Call.INFER: {**_COMMON, "rows": (_positive, "a whole number from 1")},
}


def _weighted(part: str) -> Kind:
    name, equals, text = part.rpartition("=")
    if not equals:
        raise MixError(f"{part!r} has no weight: write {part}=1")
    try:
        weight = float(text)
    except ValueError:
        raise MixError(f"{part!r}: the weight after the last '=' must be a number, got {text!r}") from None
    if not (weight > 0 and math.isfinite(weight)):
        raise MixError(f"{part!r}: the weight must be positive and finite, got {text}")
    try:
        return parse_kind(name, weight)
    except MissingValue as error:
        raise MixError(f"{error}, or the weight is missing (the last '=' gives it)") from None


def _options(part: str, texts: Sequence[str], known: Mapping[str, tuple[Callable[[str], Any], str]]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if name not in known:
            raise MixError(f"{part!r}: unknown option {name!r}; there are {', '.join(known)}")
        read, wanted = known[name]
        if not equals:
            raise MissingValue(f"{part!r}: option {name} has no value")
        try:
            options[name] = read(value)
        except ValueError:
            raise MixError(f"{part!r}: {name} must be {wanted}, got {value!r}") from None
    return options
