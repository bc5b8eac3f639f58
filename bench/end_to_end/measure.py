"""Runs the cases: everybody in turns, round by round, until the time is up."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import torch

from export import ExportError
from export.runtime import EngineError
from models.bundle import Bundle, BundleError

from ..environment import describe_environment, stolen_seconds
from .bandwidth import copy_bandwidth
from .bundles import Precision, checkpoint_of, export, find_bundle, is_traced, untraced
from .cases import LANGEVIN_STEPS, NFE, ROWS, WORKLOADS, Case, EndToEndError, Workload, cases_of, program_of
from .contenders import Run
from .loaded import BARE, COMPILED, DTYPES, Loaded, LoadedOnDevice, LoadedOnHost
from .plan import Lot, fitting, lots_of
from .result import Cell, EndToEnd, Timing
from .served import Taken

VISIT_SECONDS = 0.5
"""Of one contender, each time that a case's turn comes: short requests are made several times."""

MAX_CALLS = 50
MAX_ROUNDS = 40
COMPILE_SHARE = 0.35
"""A model's part of the time that torch.compile may take: it compiles for each number of rows anew."""

COMPILE_LEAST = {"cpu": 240.0, "cuda": 40.0}
"""A model's seconds from which on torch.compile is tried: how long it takes is known only afterwards."""

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure; see `python -m bench end-to-end --help`.

    engines: on a device those of `export.runtime.DEVICE_ENGINES`, on the CPU `onnxruntime` and `torch`.
    repository: ready bundles; what is not there is made, on the CPU by exporting it, on a GPU without a graph, for
    torch, in `precision`. langevin: steps of a chain. compiled: whether torch.compile is tried.
    """

    engines: tuple[str, ...] = ("onnxruntime", "torch")
    workloads: tuple[Workload, ...] = WORKLOADS
    rows: tuple[int, ...] = ROWS
    nfe: tuple[int, ...] = NFE
    langevin: int = LANGEVIN_STEPS
    threads: int = field(default_factory=lambda: max(1, (os.cpu_count() or 1) - 1))
    repository: Path | None = None
    precision: Precision = "bfloat16"
    compiled: bool = True


def measure_end_to_end(
    device: str = "cpu",
    budget_seconds: float = 900.0,
    options: Options | None = None,
    *,
    report: Report = lambda text: None,
    clock: Callable[[], float] = perf_counter,
) -> EndToEnd:
    """Measure whole requests on a device, `cpu` or `cuda:N`, in about so many seconds.

    Bundles that have to be exported first are beside that time. What does not fit is left out, longest cases first,
    and said so; so are models and engines that fail.
    """
    options = options or Options(engines=("onnxruntime", "torch") if device == "cpu" else ("torch",))
    place = torch.device(device)
    environment, stolen = describe_environment(), stolen_seconds()
    measurement = _Measurement(place, options, report, clock)
    with TemporaryDirectory(prefix="fewstep-bench-") as scratch:
        bundles = measurement.bundles(Path(scratch))
        began = clock()
        bandwidth = copy_bandwidth(place) if place.type == "cuda" else None
        measurement.bandwidth = bandwidth
        for index, (workload, bundle) in enumerate(bundles):
            left = budget_seconds - (clock() - began)
            share = workload.weight / sum(other.weight for other, _ in bundles[index:])
            measurement.model(workload, bundle, clock() + left * share)
    return EndToEnd(
        environment=environment,
        device=device if place.type == "cpu" else torch.cuda.get_device_name(place),
        precision="float32" if place.type == "cpu" else options.precision,
        threads=options.threads,
        budget_seconds=budget_seconds,
        seconds=clock() - began,
        copy_bandwidth=bandwidth,
        parameters=measurement.parameters,
        compile_seconds=measurement.compile_seconds,
        cells=tuple(measurement.cells),
        left_out=measurement.left_out,
        load_after=os.getloadavg()[0],
        stolen_seconds=stolen_seconds() - stolen,
    )


class _Measurement:
    """What has been measured so far."""

    def __init__(self, device: torch.device, options: Options, report: Report, clock: Callable[[], float]) -> None:
        self.device, self.options, self.report, self.clock = device, options, report, clock
        self.bandwidth: float | None = None
        self.compiles = False
        self.parameters: dict[str, int] = {}
        self.compile_seconds: dict[str, float] = {}
        self.cells: list[Cell] = []
        self.left_out: dict[str, str] = {}

    def bundles(self, scratch: Path) -> list[tuple[Workload, Bundle]]:
        """The bundles of the workloads that can be had, in their order."""
        found = []
        for workload in self.options.workloads:
            try:
                found.append((workload, self._bundle(workload, scratch)))
            except (EndToEndError, BundleError, ExportError, ImportError) as error:
                self.left_out[workload.model] = str(error)
        return found

    def _bundle(self, workload: Workload, scratch: Path) -> Bundle:
        repository = self.options.repository
        standing = find_bundle(repository, workload.model) if repository is not None else None
        if standing is not None:
            return standing
        self.report(f"{workload.model}: making it")
        checkpoint = checkpoint_of(workload, scratch / "checkpoints")
        if self.device.type == "cpu" and "onnxruntime" in self.options.engines and not workload.slow_export:
            return export(checkpoint, scratch / "bundles", self.report)
        return untraced(checkpoint, "float32" if self.device.type == "cpu" else self.options.precision)

    def model(self, workload: Workload, bundle: Bundle, deadline: float) -> None:
        """Measure the cases of one model until the deadline."""
        options, began = self.options, self.clock()
        if deadline <= began:
            self.left_out[workload.model] = "no time was left"
            return
        self.compiles = options.compiled and deadline - began >= COMPILE_LEAST[self.device.type]
        with ExitStack() as stack:
            engines = []
            for engine in options.engines:
                self.report(f"{workload.model}: loading it with {engine}")
                try:
                    engines.append(stack.enter_context(self._load(bundle, engine)))
                except (EndToEndError, EngineError, BundleError, ImportError) as error:
                    self.left_out[f"{workload.model}, {engine}"] = str(error)
            cases = cases_of(workload, options.rows, options.nfe, options.langevin)
            programs = {case: program_of(bundle.card, case) for case in cases}
            networks = {line.network for program in programs.values() for line in program.lines}
            self.parameters[workload.model] = _parameters(bundle, networks)
            self.report(f"{workload.model}: trying single forwards")
            lots = lots_of(cases, programs, engines, lambda loaded: len(self._contenders(loaded)))
            kept, left = fitting(lots, (1 - COMPILE_SHARE * self.compiles) * (deadline - self.clock()))
            races = [_Race(lot) for lot in sorted(kept, key=lambda lot: lot.seconds)]
            self._prepare(races, began, deadline)
            self._run(workload, races, deadline)
        self._write(cases, programs, races, left, bundle)

    def _load(self, bundle: Bundle, engine: str) -> Loaded:
        if engine != "torch" and not is_traced(bundle):
            raise EndToEndError("no graph was written for the measurement: export it first, and give the repository")
        if self.device.type == "cpu" and engine == "onnxruntime":
            return LoadedOnHost(bundle, self.options.threads)
        return LoadedOnDevice(bundle, engine, self.device, self.options.threads)

    def _contenders(self, loaded: Loaded) -> list[str]:
        return [name for name in loaded.contenders if name != COMPILED or self.compiles]

    def _prepare(self, races: Sequence[_Race], began: float, deadline: float) -> None:
        """Make the contenders and run each once; torch.compile's as long as it may take."""
        compiling = COMPILE_SHARE * (deadline - began)
        spent = last = 0.0
        shapes: set[int] = set()  # that have been compiled for
        for race in races:
            case = race.lot.case
            for name in self._contenders(race.lot.loaded):
                if name == COMPILED and case.rows not in shapes and spent + last > compiling:
                    race.left_out[name] = f"compiling took {spent:.0f} s for fewer rows, and no more is left for it"
                    continue
                self.report(f"{case.model}: {case.text}, {race.lot.loaded.engine}, {name}: warming up")
                started = self.clock()
                try:
                    run = race.lot.loaded.make(name, case, race.lot.program)
                    run()
                except (EndToEndError, RuntimeError) as error:
                    race.left_out[name] = _one_line(error)
                    continue
                race.runs[name] = run
                if name == COMPILED and case.rows not in shapes:
                    shapes.add(case.rows)
                    last = self.clock() - started
                    spent += last
        if shapes:
            self.compile_seconds[races[0].lot.case.model] = spent

    def _run(self, workload: Workload, races: Sequence[_Race], deadline: float) -> None:
        for round_ in range(MAX_ROUNDS):
            started = self.clock()
            for race in races:
                if round_ and self.clock() > deadline:
                    return
                self.report(f"{workload.model}: round {round_ + 1}, {race.lot.case.text}, {race.lot.loaded.engine}")
                race.visit(round_, deadline, self.clock)
            if self.clock() + (self.clock() - started) > deadline:
                return

    def _write(
        self, cases: Sequence[Case], programs: dict, races: Sequence[_Race], left: Sequence[Lot], bundle: Bundle
    ) -> None:
        for case in cases:
            own = [race for race in races if race.lot.case == case]
            timings = [timing for race in own for timing in race.timings()]
            left_out = {f"{race.lot.loaded.engine} {name}": why for race in own for name, why in race.left_out.items()}
            for lot in left:
                if lot.case == case:
                    left_out[lot.loaded.engine] = f"a round would take {lot.seconds:.1f} s, more than there is time for"
            program = programs[case]
            floor = None
            if self.bandwidth is not None:
                weights = sum(_weight_bytes(bundle, line.network) for line in program.lines)
                floor = weights / self.bandwidth
            self.cells.append(Cell(case, program.nfe, program.gradient_passes, tuple(timings), floor, left_out))


class _Race:
    """The contenders of a case with one engine, and the calls that they have made so far."""

    def __init__(self, lot: Lot) -> None:
        self.lot = lot
        self.runs: dict[str, Run] = {}
        self.taken: dict[str, list[Taken]] = {}
        self.left_out: dict[str, str] = {}

    def visit(self, round_: int, deadline: float, clock: Callable[[], float]) -> None:
        """Some calls of everybody, one after the other, in an order that changes, so that nobody is always first.

        Their n-th calls are a few seconds apart at most, and are compared with each other.
        """
        one = self.lot.seconds / max(1, len(self.runs))
        for call in range(max(1, min(MAX_CALLS, int(VISIT_SECONDS / max(one, 1e-6))))):
            if call and clock() > deadline:
                return
            names = list(self.runs)
            for name in names if (round_ + call) % 2 == 0 else reversed(names):
                self.taken.setdefault(name, []).append(self.runs[name]())

    def timings(self) -> list[Timing]:
        bare = self.taken.get(BARE, [])
        return [
            Timing.of(
                *(self.lot.loaded.engine, name, calls),
                bare=() if name == BARE else bare,
                networks=self.lot.loaded.tells_networks,
            )
            for name, calls in self.taken.items()
        ]


def _parameters(bundle: Bundle, networks: set[str]) -> int:
    """Of the modules that networks run, each counted once."""
    names: set[str] = set()
    for network in networks:
        module = bundle.card.networks[network].module
        names |= {*(bundle.card.modules[module].parts.values() or [module])}
    return sum(bundle.card.modules[name].parameters for name in names)


def _weight_bytes(bundle: Bundle, network: str) -> int:
    size = DTYPES[bundle.manifest.graphs[network].precision].itemsize
    return bundle.card.modules[bundle.card.networks[network].module].parameters * size


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
