"""Requests -> jobs: every field is checked here, and an error names the field."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from models.card import ModelCard
from models.program import Program
from models.samplers import OptionError, SampleOptions, UnsupportedError, find_scale, takes_labels
from protos import fewstep_pb2 as pb

from ..errors import FailedPrecondition, InvalidArgument, NotFound
from ..names import check_count, check_name
from ..repository import Model

MAX_PRIORITY = 10
LONG_STEPS = 500
"""Programs of more steps take longer to compile, ten microseconds a step, than other requests should wait for it."""
MAX_VALUES = 10_000  # of one parameter: a number for each step of the longest chain


class SamplePlan(NamedTuple):
    """A validated sample request: the sampler's name, the program, and a label (or None) for each sample."""

    sampler: str
    program: Program
    labels: list[int | None]


class RefinePlan(NamedTuple):
    """A validated refinement: the method's name and the program."""

    method: str
    program: Program


def sample_options(request: pb.SampleRequest) -> SampleOptions:
    """The sampler's options as the caller set them; unset ones stay None.

    Raises:
        InvalidArgument: a name or a list is longer than any can be. Nothing is copied before that is known.
    """
    for field in ("sampler", "spacing", "form"):
        check_name(field, getattr(request, field))
    check_count("m", request.m)
    check_count("weights", request.weights)
    for i, row in enumerate(request.weights):
        if len(row.values) != i + 1:
            message = f"row {i} must hold {i + 1} values, one per prediction so far, got {len(row.values)}"
            raise InvalidArgument("weights", message)
    return SampleOptions(
        sampler=request.sampler or None,
        steps=request.steps if request.HasField("steps") else None,
        spacing=request.spacing or None,
        m=tuple(request.m),
        form=request.form or None,
        weights=tuple(tuple(row.values) for row in request.weights),
        eta=request.eta if request.HasField("eta") else None,
        guidance=request.guidance if request.HasField("guidance") else None,
        temperature=request.temperature if request.HasField("temperature") else None,
        step_size=request.step_size if request.HasField("step_size") else None,
        parameters=_parameters(request),
    )


def _parameters(request: pb.SampleRequest | pb.RefineRequest) -> tuple[tuple[str, tuple[float, ...]], ...]:
    """The method's own options, in the order of their names."""
    check_count("parameters", request.parameters)
    for name in request.parameters:
        check_name("parameters", name)
        check_count(f"parameters[{name}]", request.parameters[name].values, MAX_VALUES)
    return tuple((name, tuple(request.parameters[name].values)) for name in sorted(request.parameters))


async def compile_sample_ahead(model: Model, request: pb.SampleRequest) -> None:
    """Have the program of a request compiled where that takes long, beside the event loop; `sample_plan` finds it.

    Raises:
        InvalidArgument, FailedPrecondition.
    """
    if _is_long(request):
        with _option_errors():
            await model.programs.compile_ahead(sample_options(request))


async def compile_refine_ahead(model: Model, request: pb.RefineRequest) -> None:
    """As `compile_sample_ahead`, for `refine_plan`."""
    if _is_long(request):
        with _option_errors():
            await model.programs.compile_ahead(_refine_options(request), refine=True)


def _is_long(request: pb.SampleRequest | pb.RefineRequest) -> bool:
    return request.steps > LONG_STEPS or any(
        max(request.parameters[name].values, default=0.0) > LONG_STEPS for name in request.parameters if "steps" in name
    )


def sample_plan(model: Model, request: pb.SampleRequest, max_rows: int, labels_field: str = "labels") -> SamplePlan:
    """What a sample request asks for.

    labels_field: what the caller knows the labels as.

    Raises:
        InvalidArgument, NotFound (labels), FailedPrecondition.
    """
    count = request.count if request.HasField("count") else max(1, len(request.labels))
    if not 1 <= count <= max_rows:
        raise InvalidArgument("count", f"must be within 1..{max_rows}, got {count}")
    options = sample_options(request)
    with _option_errors():
        program = model.programs.sample(options)
    labels = check_labels(model.card, request.labels, count, labels_field)
    sampler = options.sampler or model.samplers[0]
    if request.labels and not takes_labels(model.card, program):
        raise FailedPrecondition(f"{labels_field}: {sampler} with these options takes no labels")
    return SamplePlan(sampler, program, labels)


def refine_plan(model: Model, request: pb.RefineRequest) -> RefinePlan:
    """What a refinement asks for.

    Raises:
        InvalidArgument, FailedPrecondition.
    """
    options = _refine_options(request)
    with _option_errors():
        program = model.programs.refine(options)
    return RefinePlan(options.sampler or model.refiners[0], program)


def _refine_options(request: pb.RefineRequest) -> SampleOptions:
    check_name("method", request.method)
    return SampleOptions(
        sampler=request.method or None,
        steps=request.steps if request.HasField("steps") else None,
        temperature=request.temperature if request.HasField("temperature") else None,
        step_size=request.step_size if request.HasField("step_size") else None,
        parameters=_parameters(request),
    )


@contextmanager
def _option_errors() -> Iterator[None]:
    """What a program's compiler says of its options, as the callers get it."""
    try:
        yield
    except OptionError as error:
        raise InvalidArgument(error.field, error.message) from None
    except UnsupportedError as error:
        raise FailedPrecondition(str(error)) from None


def score_plan(model: Model, request: pb.ScoreRequest) -> list[tuple[str, Program]]:
    """The scales asked for, by name, each with its program.

    Raises:
        NotFound: no such scale. InvalidArgument: a scale twice, or what is no name.
        FailedPrecondition: no energy.
    """
    check_count("scales", request.scales)
    for name in request.scales:
        check_name("scales", name)
    names: list[str | None] = [*request.scales] or [None]
    if names == ["all"] and model.card.energy is not None:
        names = [scale.name for scale in model.card.energy.scales]
    if len(set(names)) != len(names):
        raise InvalidArgument("scales", f"names a scale twice: {', '.join(request.scales)}")
    try:
        scales = [find_scale(model.card, name) for name in names]
    except OptionError as error:
        raise NotFound(str(error)) from None
    except UnsupportedError as error:
        raise FailedPrecondition(str(error)) from None
    return [(scale.name, model.programs.score(scale)) for scale in scales]


def check_labels(card: ModelCard, labels: Sequence[int], count: int, field: str) -> list[int | None]:
    """One label a sample; the null label where none are given.

    Raises:
        InvalidArgument: a wrong number of labels. NotFound: a label that the model does not have.
        FailedPrecondition: labels for a model without, or none for a model that needs them.
    """
    if not labels:
        if card.labels is not None and card.labels.null is None:
            raise FailedPrecondition(f"{field}: {card.name} needs a label for each sample")
        return [None if card.labels is None else card.labels.null] * count
    if card.labels is None:
        raise FailedPrecondition(f"{field}: {card.name} has no labels")
    if len(labels) not in (1, count):
        raise InvalidArgument(field, f"must hold 0, 1 or count ({count}) values, got {len(labels)}")
    for label in labels:
        if not 0 <= label < card.labels.count:
            raise NotFound(f"{field}: no label {label}; there are 0..{card.labels.count - 1}")
    return list(labels) if len(labels) == count else [labels[0]] * count


def check_seed(request: pb.SampleRequest | pb.RefineRequest | pb.ScoreRequest) -> int:
    """The request's seed, or a fresh one; fresh ones fit in 53 bits so that they survive JSON."""
    return request.seed if request.HasField("seed") else secrets.randbits(53)


def check_priority(request: pb.SampleRequest | pb.RefineRequest | pb.ScoreRequest) -> int:
    """Raises InvalidArgument outside -10..10."""
    if not -MAX_PRIORITY <= request.priority <= MAX_PRIORITY:
        raise InvalidArgument("priority", f"must be within -{MAX_PRIORITY}..{MAX_PRIORITY}, got {request.priority}")
    return request.priority


def check_false_alarm_rate(model: Model, request: pb.ScoreRequest, scales: Sequence[str]) -> float:
    """The decision's false-alarm rate.

    Raises:
        InvalidArgument: outside (0, 1). FailedPrecondition: asked for, but the scale has no calibration.
    """
    if not request.HasField("false_alarm_rate"):
        return model.card.energy.false_alarm_rate if model.card.energy is not None else 0.05
    rate = request.false_alarm_rate
    if not (math.isfinite(rate) and 0.0 < rate < 1.0):
        raise InvalidArgument("false_alarm_rate", f"must be within (0, 1), got {rate}")
    missing = [name for name in scales if name not in model.calibrations]
    if missing:
        raise FailedPrecondition(
            f"false_alarm_rate: no calibration for scale {', '.join(missing)} of {model.card.name}"
        )
    for name in scales:
        try:
            model.calibrations[name].threshold(rate)
        except ValueError as error:
            raise InvalidArgument("false_alarm_rate", str(error)) from None
    return rate
