"""`python -m bench simulate`: fleets of 1 to 1000 servers by routing policy, in a simulation of the real scheduler.

The batcher, the admission and the programs are the server's own; what their work costs is measured (`--measure`).
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from models.machine import ROOT
from server.config import ConfigError, Limits

from ..environment import Environment, describe_environment, stolen_seconds
from ..load.plan import DEFAULT_MIX
from ..mix import parse_mix
from ..server_process import ServerProcess
from .check import CheckPlan, Measured, compare, one_server, rate_for, send_load, simulate_again
from .costs import Costs, load_costs, save_costs
from .fleet import Run
from .goal import parse_goal
from .measure import MeasurePlan, Meter
from .models import read_cards
from .report import (
    answer_rows,
    busy_rows,
    describe,
    short_comparison_rows,
    short_rows,
    show,
    what_it_took,
    write_check,
    write_study,
)
from .routers import POLICIES
from .study import Study, StudyPlan
from .traffic import CompiledCall, compile_calls

COSTS = ROOT / "bench" / "results" / "simulate" / "costs.json"
ZOO = ROOT / "models" / "zoo"


class OptionError(ValueError):
    """Options that do not go together, or one that cannot be read; the message names it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench simulate`."""
    parser.add_argument("--measure", action="store_true", help="measure a server over --repository, write --costs")
    parser.add_argument("--check", action="store_true", help="a real load on such a server beside its simulation")
    parser.add_argument("--costs", type=Path, default=COSTS, help="file of costs, default %(default)s")
    parser.add_argument(
        "--models", type=Path, default=ZOO, help="folder of checkpoints or bundles with the models' cards"
    )
    parser.add_argument("--mix", default=DEFAULT_MIX, help="kinds and weights, default %(default)s")
    parser.add_argument("--output", type=Path, default=Path("out/simulate"), help="folder of what is written")

    fleets = parser.add_argument_group("fleets")
    fleets.add_argument("--rate", default="2000", help="requests/s of the fleet; or several, as in 1000,2000")
    fleets.add_argument("--arrivals", default="poisson", help="poisson, or burst:SIZE as in burst:8")
    fleets.add_argument("--replicas", default="16", help="servers; or several, as in 8,16,32")
    fleets.add_argument("--policies", default="all", help=f"some of {', '.join(POLICIES)}; default all")
    fleets.add_argument("--goal", help="find the smallest fleet for 'p99<50ms' or 'KIND p99<50ms'; no --replicas then")
    fleets.add_argument("--max-replicas", type=int, default=1000, help="of the fleets searched, default %(default)d")
    fleets.add_argument("--routers", type=int, default=1, help="proxies that know of their own calls alone")
    fleets.add_argument("--requests", type=int, default=200_000, help="measured in a run, default %(default)d")
    fleets.add_argument("--warmup", type=float, default=0.1, help="time before, as a share of theirs")
    fleets.add_argument("--timeout", type=float, help="seconds until callers give up; default never")
    fleets.add_argument("--seed", type=int, default=0, help="of arrivals, kinds, steps and routers")
    for name in ("max_batch_rows", "max_rows_in_flight", "max_waiting_rows", "step_seconds"):
        value = getattr(Limits(), name)
        option = f"--{name.replace('_', '-')}"
        fleets.add_argument(option, type=type(value), default=value, help=f"of each server, default {value:g}")

    real = parser.add_argument_group("--measure and --check")
    real.add_argument("--repository", type=Path, help="a server over this model repository is started")
    real.add_argument("--engine", help="of that server")
    real.add_argument("--threads", type=int, help="of that server's engine")
    real.add_argument("--probe-rows", default="1,2,4,8,16,32,64", help="batch sizes measured, default %(default)s")
    real.add_argument("--probe-rounds", type=int, default=4, help="of all probes, default %(default)d")
    real.add_argument(
        "--probe-seconds", type=float, default=0.12, help="for each probe of a round, default %(default)g"
    )
    real.add_argument("--utilisation", type=float, default=0.65, help="of the device in the check, by simulation")
    real.add_argument("--check-rate", type=float, help="requests/s of the check, instead")
    real.add_argument(
        "--check-seconds", type=float, default=30.0, help="of each load of the check, default %(default)g"
    )
    real.add_argument("--check-seeds", default="1,2,3", help="one load each, default %(default)s")


def main(options: argparse.Namespace, console: Console) -> int:
    """Measure, check, or simulate fleets; 0 when done, 1 where no fleet meets the goal."""
    if options.measure and options.check:
        raise OptionError("check: --measure writes costs that --check measures for itself: give one of them")
    if options.measure or options.check:
        if options.repository is None:
            raise OptionError(f"repository: {'--measure' if options.measure else '--check'} starts a server over one")
        return _check(options, console) if options.check else _measure(options, console)
    return _study(options, console)


def _study(options: argparse.Namespace, console: Console) -> int:
    policies = tuple(POLICIES) if options.policies == "all" else tuple(_texts(options.policies))
    plan = StudyPlan(
        mix=options.mix,
        rates=_numbers("rate", options.rate, float),
        replicas=_numbers("replicas", options.replicas, int),
        policies=policies,
        **{name: getattr(options, name) for name in ("requests", "warmup", "timeout", "routers", "seed", "arrivals")},
    )
    if not 1 <= options.max_replicas <= 10_000:
        raise OptionError(f"max_replicas: must be within 1..10000, got {options.max_replicas}")
    goal = None
    if options.goal is not None:
        goal = parse_goal(options.goal, [kind.name for kind in parse_mix(plan.mix)])
    costs = load_costs(options.costs)
    environment = describe_environment()
    with _bar(console) as bar:
        task = bar.add_task("")
        study = Study(
            *(plan, read_cards(options.models), costs, _limits(options)),
            lambda what, arrived, total: bar.update(task, description=what, completed=arrived, total=total),
        )
        answers = study.size(goal, options.max_replicas) if goal is not None else []
        if goal is None:
            study.compare()
    results = sorted(study.results, key=lambda r: (r.rate, r.replicas, plan.policies.index(r.policy)))
    options.output.mkdir(parents=True, exist_ok=True)
    write_study(options.output, plan, costs.source, results, goal, answers, options.max_replicas, environment)
    from .pictures import draw_study  # after the simulation: matplotlib takes a second to import

    title = f"Simulated fleets: {plan.mix}"
    draw_study(options.output / "study.png", results, goal, title, f"costs: {describe(costs.source)}")
    show(console, "simulated fleets", short_rows(results))
    if goal is not None:
        show(console, "the smallest fleets that meet the goal", answer_rows(goal, answers, options.max_replicas))
    console.print(what_it_took(results))
    console.print(f"wrote study.json, study.md and study.png into {options.output}")
    return 1 if any(answer.replicas is None for answer in answers) else 0


def _measure(options: argparse.Namespace, console: Console) -> int:
    plan = _measure_plan(options)
    cards = read_cards(options.repository)
    environment = describe_environment()
    with _server(options) as server, _bar(console) as bar:
        meter = Meter(server.address, server.pid, parse_mix(options.mix), cards, plan)
        stolen = _run_probes(meter, bar)
    costs = _with_source(meter.costs(), options, environment, stolen)
    save_costs(options.costs, costs)
    _show_costs(costs, console)
    console.print(f"wrote {options.costs}")
    return 0


def _check(options: argparse.Namespace, console: Console) -> int:
    measure_plan = _measure_plan(options)
    plan = CheckPlan(
        mix=options.mix,
        utilisation=options.utilisation,
        rate=options.check_rate,
        duration=options.check_seconds,
        seeds=_numbers("check_seeds", options.check_seeds, int),
    )
    cards = read_cards(options.repository)
    kinds = parse_mix(plan.mix)
    environment = describe_environment()
    loads: list[Measured] = []
    with _server(options) as server, _bar(console) as bar:
        meter = Meter(server.address, server.pid, kinds, cards, measure_plan)
        stolen = _run_probes(meter, bar)
        rate = plan.rate or _rate_for(plan, meter.costs(), cards)
        task = bar.add_task(f"{rate:g} requests/s", total=len(plan.seeds))
        for seed in plan.seeds:
            loads.append(send_load(plan, rate, seed, server.address, server.metrics_address))
            bar.advance(task)
        stolen = (stolen + _run_probes(meter, bar)) / 2.0
    costs = _with_source(meter.costs(), options, environment, stolen)
    calls = compile_calls(kinds, cards, costs)
    fleet = one_server(costs, calls, cards)
    pairs = [(load, simulate_again(plan, load.schedule, fleet, calls)) for load in loads]
    comparisons = [
        compare(f"seed {seed}", plan, calls, [pair]) for seed, pair in zip(plan.seeds, pairs, strict=True)
    ] + [compare("all", plan, calls, pairs)]
    options.output.mkdir(parents=True, exist_ok=True)
    save_costs(options.output / "check-costs.json", costs)
    write_check(options.output, comparisons, rate, plan.mix, costs.source, environment)
    _draw_check(options.output / "check.png", plan, rate, calls, pairs, environment)
    _show_costs(costs, console)
    show(console, f"ms at {rate:g} requests/s, real and simulated", short_comparison_rows(comparisons))
    show(console, "the device", busy_rows(comparisons))
    console.print(f"wrote check.json, check.md, check.png and check-costs.json into {options.output}")
    return 0


def _rate_for(plan: CheckPlan, costs: Costs, cards: dict[str, Any]) -> float:
    calls = compile_calls(parse_mix(plan.mix), cards, costs)
    return rate_for(plan.utilisation, one_server(costs, calls, cards), calls)


def _draw_check(
    path: Path,
    plan: CheckPlan,
    rate: float,
    calls: tuple[CompiledCall, ...],
    pairs: list[tuple[Measured, list[Run]]],
    environment: Environment,
) -> None:
    from .pictures import draw_check

    kinds = {}
    for index, name in [(None, "all"), *enumerate(call.name for call in calls)]:
        real, simulated = [], []
        for load, runs in pairs:
            which = load.schedule.at >= plan.warmup
            which = which if index is None else which & (load.schedule.kind == index)
            real.append(load.latency[which & ~np.isnan(load.latency)])
            simulated += [run.latency[which & (run.reason == 0)] for run in runs]
        kinds[name] = (np.concatenate(real), np.concatenate(simulated))
    title = f"One server at {rate:g} requests/s, real and simulated, {len(pairs)} loads of {plan.duration:g} s"
    draw_check(path, kinds, title, environment.line())


def _measure_plan(options: argparse.Namespace) -> MeasurePlan:
    rows = _numbers("probe_rows", options.probe_rows, int)
    return MeasurePlan(rows, options.probe_rounds, options.probe_seconds)


def _run_probes(meter: Meter, bar: Progress) -> float:
    """Measure; returns how many cores the machine's host took from it meanwhile."""
    task = bar.add_task("probes")
    stolen, began = stolen_seconds(), time.perf_counter()
    meter.measure(lambda done, total: bar.update(task, completed=done, total=total))
    return (stolen_seconds() - stolen) / (time.perf_counter() - began)


def _server(options: argparse.Namespace) -> ServerProcess:
    given = {name: getattr(options, name) for name in ("engine", "threads") if getattr(options, name)}
    flags = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    return ServerProcess(options.repository, options.output / "server.log", flags)


def _with_source(costs: Costs, options: argparse.Namespace, environment: Environment, stolen: float) -> Costs:
    source = {
        "hardware": environment.cpu,
        "cores": environment.usable_cores,
        "engine": options.engine or "onnxruntime",
        "commit": environment.commit[:10],
        "time": environment.time,
        "load": f"{environment.load_average[0]:.1f}",
        "stolen": f"{stolen:.3f}",
    }
    return msgspec.structs.replace(costs, source=source)


def _show_costs(costs: Costs, console: Console) -> None:
    rows = []
    for step in costs.steps:
        sizes = {n: 1e3 * sum(values) / len(values) for n, values in zip(step.rows, step.seconds, strict=True)}
        rows.append((str(step.group), ", ".join(f"{n}: {ms:.2f}" for n, ms in sizes.items())))
    show(console, "a step, mean ms by rows", (("kind", "seconds"), rows))
    console.print(
        f"host ms: sample {1e3 * (costs.sample.receive + costs.sample.answer):.2f}"
        f" + {1e3 * costs.sample.row:.3f} a row,"
        f" score {1e3 * (costs.score.receive + costs.score.answer):.2f} + {1e3 * costs.score.row:.3f};"
        f" between batches {1e3 * costs.between:.2f}, after a pause {1e3 * costs.wake:.2f},"
        f" on the way {_mean_ms(costs.delays):.2f}, past a busy device {_mean_ms(costs.busy_delays):.2f};"
        f" interference {costs.interference:.2f};"
        f" spells {min(costs.spells):.2f} to {max(costs.spells):.2f}"
    )


def _mean_ms(values: Sequence[float]) -> float:
    return 1e3 * sum(values) / max(1, len(values))


def _limits(options: argparse.Namespace) -> Limits:
    given = asdict(Limits()) | {f.name: getattr(options, f.name) for f in fields(Limits) if hasattr(options, f.name)}
    try:
        return Limits(**given)
    except ConfigError as error:
        raise OptionError(str(error)) from error


def _texts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(option: str, text: str, kind: Any) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in _texts(text))
    except ValueError:
        raise OptionError(f"{option}: must be numbers as in 8,16,32, got {text!r}") from None


@contextlib.contextmanager
def _bar(console: Console) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, refresh_per_second=2) as bar:
        yield bar
