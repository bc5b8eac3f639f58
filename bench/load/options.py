"""The options of `python -m bench load`, and what they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..mix import parse_mix
from ..schedule import parse_arrivals
from .goals import ERRORS, Goal
from .plan import DEFAULT_MIX, DEFAULT_RATE, Clients, LoadError, LoadPlan
from .trace import read_trace

DEFAULT_ERRORS = f"{ERRORS}<1%"


@dataclass(frozen=True)
class Job:
    """The loads of one call of the command.

    rates: to send the plan at, none for its own. goals: of `rates` and a search. precision: of the rate that a search
    finds; None for no search. image_shape: (channels, height, width) of images to score.
    """

    plan: LoadPlan
    rates: Sequence[float]
    goals: Sequence[Goal]
    precision: float | None
    image_shape: tuple[int, int, int] | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench load`."""
    plan = LoadPlan()
    where = parser.add_argument_group("the server").add_mutually_exclusive_group(required=True)
    where.add_argument("--address", metavar="HOST:PORT", help="of a running server; with --protocol http a URL")
    where.add_argument(
        "--repository", type=Path, help="start a server over this model repository, and stop it afterwards"
    )
    server = parser.add_argument_group("of the server")
    server.add_argument("--protocol", choices=("fewstep", "oip", "http"), default="fewstep", help="default %(default)s")
    server.add_argument("--image-shape", metavar="CxHxW", help="of images to score, which --protocol http must be told")
    server.add_argument("--metrics-address", metavar="HOST:PORT", help="of a running fewstep server, for its batches")
    server.add_argument("--engine", help="of the started server")
    server.add_argument("--threads", type=int, help="of the started server's engine")
    what = parser.add_argument_group("what is sent")
    what.add_argument("--mix", help=f"kinds and weights, default {DEFAULT_MIX}")
    what.add_argument("--duration", type=float, help=f"seconds measured, default {plan.duration:g}, or the whole trace")
    what.add_argument("--warmup", type=float, help=f"seconds before, default {plan.warmup:g}, of a trace 0")
    what.add_argument("--seed", type=int, default=plan.seed, help="of arrivals, kinds and noise")
    what.add_argument(
        "--timeout", type=float, default=plan.timeout, help="seconds a request may take, unless its kind says"
    )
    what.add_argument("--max-open", type=int, default=plan.max_open, help="bound on requests without an answer")
    when = parser.add_argument_group("when it is sent")
    when.add_argument(
        "--rate", type=float, help=f"requests a second, default {DEFAULT_RATE:g}; a trace is stretched to it"
    )
    when.add_argument("--arrivals", metavar="LAW", help="poisson (the default) or burst:SIZE, groups at Poisson times")
    when.add_argument(
        "--trace", type=Path, metavar="FILE", help='arrivals and kinds, as lines of {"at": 0.5, "kind": "ddim:4"}'
    )
    when.add_argument("--save-trace", type=Path, metavar="FILE", help="write down what is sent, to be replayed")
    when.add_argument("--clients", type=int, help="a closed loop of so many clients in place of a rate")
    when.add_argument("--think", type=float, help="seconds that a client waits between its requests, on average")
    how_much = parser.add_argument_group("at which rates")
    how_much.add_argument("--rates", metavar="RATE,RATE", help="the load at each of these rates")
    how_much.add_argument("--search", action="store_true", help="the highest rate that meets the goals; from --rate on")
    how_much.add_argument(
        "--goal", action="append", metavar="GOAL",
        help="as p99<50ms, KIND:p99<50ms or errors<1%%, which holds unless another share is given; may be repeated",
    )  # fmt: skip
    how_much.add_argument(
        "--precision", type=float, default=0.05, help="of the rate found, a ratio, default %(default)g"
    )
    parser.add_argument("--output", type=Path, default=Path("out/load"), help="folder for results and pictures")


def read_job(options: argparse.Namespace) -> Job:
    """What the options ask for.

    Raises:
        ValueError: an option that is out of range or does not go with another one; names it.
    """
    _check_together(options)
    plan = _read_plan(options)
    return Job(
        plan,
        _read_rates(options.rates, plan),
        _read_goals(options, plan),
        options.precision if options.search else None,
        _read_image_shape(options.image_shape),
    )


def _check_together(options: argparse.Namespace) -> None:
    """Refuse options that do not go with each other."""
    closed, replayed = options.clients is not None, options.trace is not None
    repeated = options.search or options.rates is not None
    refusals = (
        (options.think is not None and not closed, "think: is of a closed loop, --clients"),
        (options.rate is not None and closed, "rate: is of an open loop, --clients of a closed one"),
        (options.arrivals is not None and closed, "arrivals: are of an open loop, --clients of a closed one"),
        (replayed and closed, "trace: is of an open loop, --clients of a closed one"),
        (options.save_trace is not None and closed, "save-trace: in a closed loop the server sets the times"),
        (options.save_trace is not None and repeated, "save-trace: is of one load, not of --rates or --search"),
        (options.arrivals is not None and replayed, "arrivals: do not go with --trace, which has its own"),
        (options.mix is not None and replayed, "mix: does not go with --trace, which names the kinds"),
        (options.rates is not None and closed, "rates: do not go with --clients, which have no rate to choose"),
        (options.rates is not None and replayed, "rates: do not go with --trace, which --rate stretches"),
        (options.search and closed, "search: does not go with --clients, which have no rate to choose"),
        (options.search and replayed, "search: does not go with --trace, which --rate stretches"),
        (options.search and options.rates is not None, "search: does not go with --rates"),
        (options.search and not options.goal, "search: needs a --goal, as p99<50ms"),
        (bool(options.goal) and not repeated, "goal: is of --search and --rates"),
    )
    for refused, why in refusals:
        if refused:
            raise LoadError(why)


def _read_plan(options: argparse.Namespace) -> LoadPlan:
    rest = {name: getattr(options, name) for name in ("seed", "timeout", "max_open")}
    warmup, duration = options.warmup, options.duration
    if options.trace is not None:
        replay = read_trace(options.trace)
        replay = replay if options.rate is None else replay.at_rate(options.rate)
        warmup = 0.0 if warmup is None else warmup
        duration = replay.seconds - warmup if duration is None else duration
        return LoadPlan(replay.mix, replay, duration, warmup, **rest)
    plan = LoadPlan()
    mix = plan.mix if options.mix is None else options.mix
    parse_mix(mix)
    rate = DEFAULT_RATE if options.rate is None else options.rate
    arrivals = (
        Clients(options.clients, options.think or 0.0)
        if options.clients is not None
        else parse_arrivals("poisson" if options.arrivals is None else options.arrivals, rate)
    )
    warmup = plan.warmup if warmup is None else warmup
    return LoadPlan(mix, arrivals, plan.duration if duration is None else duration, warmup, **rest)


def _read_goals(options: argparse.Namespace, plan: LoadPlan) -> list[Goal]:
    """The goals that the options name; errors are bounded in any case.

    Raises:
        LoadError: a goal that cannot be read.
    """
    kinds = [kind.name for kind in parse_mix(plan.mix)]
    goals = [Goal.parse(text, kinds) for text in options.goal or ()]
    if goals and not any(goal.measure == ERRORS for goal in goals):
        goals.append(Goal.parse(DEFAULT_ERRORS, kinds))
    return goals


def _read_rates(text: str | None, plan: LoadPlan) -> list[float]:
    """The rates of `--rates`, each checked for the plan; none without the option.

    Raises:
        LoadError: one that is no rate, or too high.
    """
    rates = []
    for part in text.split(",") if text is not None else ():
        try:
            rates.append(float(part))
        except ValueError:
            raise LoadError(f"rates: must be numbers as in 10,20,40, got {part!r}") from None
    for rate in rates:
        plan.at_rate(rate)
    return sorted(set(rates))


def _read_image_shape(text: str | None) -> tuple[int, int, int] | None:
    """Read `CxHxW`.

    Raises:
        LoadError: it is no such thing.
    """
    if text is None:
        return None
    sizes = text.split("x")
    if len(sizes) != 3 or not all(size.isascii() and size.isdigit() and int(size) for size in sizes):
        raise LoadError(f"image-shape: must be CHANNELSxHEIGHTxWIDTH as in 1x8x8, got {text!r}")
    channels, height, width = map(int, sizes)
    return channels, height, width
