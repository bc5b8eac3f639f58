"""`python -m bench profile`: where the microseconds of a request go, stage by stage, and a flame picture."""

from __future__ import annotations

import argparse
import contextlib
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import grpc
import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from models.bundle import Bundle, load_bundle
from models.program import Program
from models.samplers import SampleOptions, compile_sample
from protos import fewstep_pb2 as pb

from ..environment import describe_environment
from ..server_process import ServerProcess
from . import flame
from .measure import Ask, Timed, ask_engine, ask_floor, ask_server, cpu_seconds, in_turns
from .report import markdown
from .result import Profile, Server, stage_times
from .servers import Floor, ProfiledProcess
from .stages import load_marks

ROUNDS = 10
THREADS = 1
LEAST_THREAD = 5e-6
"""CPU seconds a request below which a thread is not worth a line."""


class ProfileError(ValueError):
    """A profile that cannot be made; the message names the option."""


class _Plan(NamedTuple):
    bundle: Bundle
    program: Program
    request: pb.SampleRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench profile`."""
    parser.add_argument("--repository", type=Path, required=True, help="bundles, written by python -m export")
    parser.add_argument("--model", default="digits-ddpm", help="default %(default)s")
    parser.add_argument("--sampler", default="ddim", help="of one network and one update, default %(default)s")
    parser.add_argument("--steps", type=int, default=1, help="default %(default)s")
    parser.add_argument("--requests", type=int, default=600, help="to each server, default %(default)s")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds before each request, default back to back")
    parser.add_argument("--flame", type=float, default=10.0, help="seconds of the flame picture, 0 for none")
    parser.add_argument("--output", type=Path, default=Path("out/profile"), help="default %(default)s")


def main(options: argparse.Namespace, console: Console) -> int:
    """Profile, print the stages and write everything down."""
    plan = _plan(options)
    options.output.mkdir(parents=True, exist_ok=True)
    profile = _measure(options, plan, console)
    (options.output / "profile.json").write_bytes(
        msgspec.json.format(msgspec.json.encode(asdict(profile)), indent=1) + b"\n"
    )
    (options.output / "profile.md").write_text(markdown(profile))
    from .pictures import draw_stages  # after the measurement: matplotlib takes a second to import

    draw_stages(options.output / "stages.png", profile)
    _show(profile, console)
    console.print(f"wrote profile.json, profile.md and the pictures to {options.output}")
    return 0


def _plan(options: argparse.Namespace) -> _Plan:
    """Check the options.

    Raises:
        ProfileError: an option is out of range, or the model cannot do that.
    """
    if options.requests < ROUNDS:
        raise ProfileError(f"--requests: must be at least {ROUNDS}, got {options.requests}")
    for name in ("pause", "flame"):
        if not 0 <= getattr(options, name) <= 60:
            raise ProfileError(f"--{name}: must be within 0..60 s, got {getattr(options, name)}")
    directories = sorted((options.repository / options.model).glob("[0-9]*"), key=lambda path: int(path.name))
    if not directories:
        raise ProfileError(f"--model: {options.repository} holds no {options.model}")
    bundle = load_bundle(directories[-1])
    program = compile_sample(bundle.card, SampleOptions(sampler=options.sampler, steps=options.steps))
    if len(program.line_counts) != 1 or program.nfe != len(program.lines):
        raise ProfileError(f"--sampler: {options.sampler} runs several networks, and the floor runs one")
    request = pb.SampleRequest(model=options.model, sampler=options.sampler, steps=options.steps, count=1, seed=7)
    return _Plan(bundle, program, request)


def _measure(options: argparse.Namespace, plan: _Plan, console: Console) -> Profile:
    network, runs = plan.program.lines[0].network, plan.program.nfe
    graph, output = plan.bundle.graph_path(network), options.output
    marks_file = output / "marks.json"
    arguments = ["--repository", str(options.repository.resolve()), "--port", "0", "--metrics-port", "0"]
    threads = ["--threads", str(THREADS)]
    environment = describe_environment()
    every: list[Timed] = []
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(ServerProcess(options.repository, output / "server.log", threads))
        probed = stack.enter_context(
            ProfiledProcess(
                *("the server with probes", "bench.profile.probed_server"),
                *([str(marks_file.resolve()), *arguments, *threads], output / "probed.log"),
            )
        )
        floor = stack.enter_context(Floor(output / "floor.log", graph.resolve(), runs))
        echo = stack.enter_context(Floor(output / "echo.log"))
        addresses = [process.address for process in (server, probed, floor, echo)]
        channels = [stack.enter_context(_channel(address)) for address in addresses]
        body = plan.request.SerializeToString()
        asks = [
            ask_engine(plan.bundle, network, runs, THREADS),
            ask_server(channels[0], plan.request),
            _kept(ask_server(channels[1], plan.request), every),
            ask_floor(channels[2], body),
            ask_floor(channels[3], body),
        ]
        bar = stack.enter_context(Progress(console=console, transient=True))
        task = bar.add_task("asking in turns", total=ROUNDS * len(asks))
        before = cpu_seconds(server.pid)
        bare, served, probed_calls, floor_calls, echo_calls = in_turns(
            asks, options.requests, ROUNDS, options.pause, lambda: bar.advance(task)
        )
        calls = len(served) + ROUNDS + 50
        used = {name: (now - before.get(name, 0.0)) / calls for name, now in cpu_seconds(server.pid).items()}
        if options.flame:
            bar.add_task("flame picture", total=None)
            _flame(server.pid, output / "flame.svg", options.flame, asks[1], console)
    measured = {call.began for call in probed_calls}
    pairs = zip(every, load_marks(marks_file), strict=True)
    kept = [(call, marks) for call, marks in pairs if call.began in measured]
    marks_file.unlink()
    return Profile(
        environment=environment,
        model=options.model,
        sampler=options.sampler,
        steps=options.steps,
        requests=options.requests,
        pause=options.pause,
        bare=Server.of("the engine alone, in a loop", bare),
        echo=Server.of("an echo, no engine", echo_calls),
        floor=Server.of("the floor: gRPC and the engine in its event loop", floor_calls),
        served=Server.of("fewstep", served),
        probed=Server.of("fewstep, with probes", probed_calls),
        stages=stage_times([call for call, _ in kept], [marks for _, marks in kept]),
        threads={name.split(" ", 1)[1] + f" ({name.split()[0]})": s for name, s in used.items() if s > LEAST_THREAD},
    )


def _kept(ask: Ask, calls: list[Timed]) -> Ask:
    def keeping() -> Timed:
        calls.append(ask())
        return calls[-1]

    return keeping


def _channel(address: str) -> grpc.Channel:
    return grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)])


def _flame(pid: int, path: Path, seconds: float, ask: Ask, console: Console) -> None:
    try:
        flame.record(pid, path, seconds, lambda: _repeat(ask))
    except flame.FlameError as error:
        console.print(f"no flame picture: {error}")


def _repeat(ask: Ask) -> None:
    for _ in range(20):
        ask()


def _show(profile: Profile, console: Console) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage", no_wrap=True)
    for column in ("p50 us", "p90 us", "share"):
        table.add_column(column, justify="right")
    table.add_column("until", max_width=max(20, shutil.get_terminal_size().columns - 50))
    for stage in profile.stages:
        style = "bold" if stage.ours else None
        times = (f"{1e6 * stage.p50:.0f}", f"{1e6 * stage.p90:.0f}", f"{100 * stage.share:.0f}%")
        table.add_row(stage.name, *times, stage.meaning, style=style)
    console.print(table)
    for server in (profile.bare, profile.floor, profile.served, profile.probed, profile.echo):
        total, added = 1e3 * server.total["p50"], 1e3 * server.added["p50"]
        console.print(f"{server.name}: p50 {total:.2f} ms, of which {added:.2f} ms added to the engine's own time")
    console.print(f"added, over the floor's: {profile.over_floor:.2f}. Bold stages are this project's own code.")
