"""Runs the cases: everybody in turns, round by round, until the time is up."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import torch

from export import ExportError
from export.runtime import EngineError
from models.bundle import Bundle, BundleError
from models.program import Program
from server.errors import ServerError

from ..environment import describe_environment, stolen_seconds
from .bandwidth import copy_bandwidth
from .bundles import Precision, checkpoint_of, export, find_bundle, is_traced, untraced
from .cases import LANGEVIN_STEPS, NFE, ROWS, WORKLOADS, Case, EndToEndError, Workload, cases_of, program_of
from .loaded import COMPILED, DTYPES, Loaded, LoadedOnDevice, LoadedOnHost
from .plan import ROUNDS, Lot, fitting, lots_of
from .race import Race
from .result import Cell, EndToEnd

VISIT_SECONDS = 0.5
"""Of one contender, each time that a case's turn comes: short requests are made several times."""

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
    keep: Callable[[EndToEnd], None] = lambda result: None,
    clock: Callable[[], float] = perf_counter,
) -> EndToEnd:
    """Measure whole requests on a device, `cpu` or `cuda:N`, in about so many seconds.

    On the CPU, bundles that have to be exported first are beside that time. What does not fit is left out, longest
    cases first, and said so; so are models and engines that fail.
    keep: is given what there is so far, whenever there is more of it.
    """
    options = options or Options(engines=("onnxruntime", "torch") if device == "cpu" else ("torch",))
    place = torch.device(device)
    environment, stolen = describe_environment(), stolen_seconds()
    began = clock()
    measurement = _Measurement(place, options, report, clock)

    def result() -> EndToEnd:
        return EndToEnd(
            environment=environment,
            device=device if place.type == "cpu" else torch.cuda.get_device_name(place),
            precision="float32" if place.type == "cpu" else options.precision,
            threads=options.threads,
            budget_seconds=budget_seconds,
            seconds=clock() - began,
            copy_bandwidth=measurement.bandwidth,
            parameters=measurement.parameters,
            compile_seconds=measurement.compile_seconds,
            cells=tuple(cell for cells in measurement.cells.values() for cell in cells),
            left_out=measurement.left_out,
            load_after=os.getloadavg()[0],
            stolen_seconds=stolen_seconds() - stolen,
        )

    with TemporaryDirectory(prefix="fewstep-bench-") as scratch:
        bundles = measurement.bundles(Path(scratch))
        if place.type == "cpu":
            began = clock()
        else:
            measurement.bandwidth = copy_bandwidth(place)
        for index, (workload, bundle) in enumerate(bundles):
            left = budget_seconds - (clock() - began)
            share = workload.weight / sum(other.weight for other, _ in bundles[index:])
            try:
                measurement.model(workload, bundle, clock() + left * share, lambda: keep(result()))
            except (ServerError, RuntimeError, TimeoutError) as error:  # of this model; the others may do
                measurement.left_out[workload.model] = _one_line(error)
    return result()


class _Measurement:
    """What has been measured so far."""

    def __init__(self, device: torch.device, options: Options, report: Report, clock: Callable[[], float]) -> None:
        self.device, self.options, self.report, self.clock = device, options, report, clock
        self.bandwidth: float | None = None
        self.parameters: dict[str, int] = {}
        self.compile_seconds: dict[str, float] = {}
        self.cells: dict[str, list[Cell]] = {}
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

    def model(self, workload: Workload, bundle: Bundle, deadline: float, keep: Callable[[], None]) -> None:
        """Measure the cases of one model until the deadline. keep: called when there are numbers worth keeping."""
        options, began = self.options, self.clock()
        if deadline <= began:
            self.left_out[workload.model] = "no time was left"
            return
        compiling = COMPILE_SHARE * (deadline - began)
        if not options.compiled or deadline - began < COMPILE_LEAST[self.device.type]:
            compiling = 0.0
        with ExitStack() as stack:
            engines = [stack.enter_context(loaded) for loaded in self._engines(workload, bundle)]
            cases = cases_of(workload, options.rows, options.nfe, options.langevin)
            programs = {case: program_of(bundle.card, case) for case in cases}
            networks = {line.network for program in programs.values() for line in program.lines}
            self.parameters[workload.model] = _parameters(bundle, networks)
            self.report(f"{workload.model}: trying single forwards")
            kept, left = fitting(lots_of(cases, programs, engines), deadline - compiling - self.clock())
            races = [Race(lot) for lot in sorted(kept, key=lambda lot: lot.seconds)]

            def write() -> None:
                self.cells[workload.model] = [
                    self._cell(case, programs[case], bundle, [race for race in races if race.lot.case == case], left)
                    for case in cases
                ]
                keep()

            for race in races:
                self._prepare(race, [name for name in race.lot.loaded.contenders if name != COMPILED])
            self._run(races, deadline - compiling)
            write()
            if compiling:
                self._compile(workload.model, races, compiling)
                self._run(races, deadline)
                write()

    def _engines(self, workload: Workload, bundle: Bundle) -> Iterator[Loaded]:
        """The model in every engine that can run it."""
        for engine in self.options.engines:
            self.report(f"{workload.model}: loading it with {engine}")
            try:
                yield self._load(bundle, engine)
            except (EndToEndError, EngineError, BundleError, ImportError) as error:
                self.left_out[f"{workload.model}, {engine}"] = str(error)

    def _load(self, bundle: Bundle, engine: str) -> Loaded:
        if engine != "torch" and not is_traced(bundle):
            raise EndToEndError("no graph was written for the measurement: export it first, and give the repository")
        if self.device.type == "cpu" and engine == "onnxruntime":
            return LoadedOnHost(bundle, self.options.threads)
        return LoadedOnDevice(bundle, engine, self.device, self.options.threads)

    def _compile(self, model: str, races: Sequence[Race], seconds: float) -> None:
        """Make what torch.compile takes part in, for one number of rows after the other, as long as that may take.

        After the others have been measured: how long it takes is known only afterwards, and it may not come back.
        """
        began, last = self.clock(), 0.0
        ready: set[int] = set()  # numbers of rows
        for race in races:
            rows, spent = race.lot.case.rows, self.clock() - began
            if COMPILED not in race.lot.loaded.contenders:
                continue
            if rows not in ready and spent + last > seconds:
                race.left_out[COMPILED] = f"compiling for fewer rows took {spent:.0f} s, and no more are left for it"
                continue
            self._prepare(race, [COMPILED])
            if rows not in ready:
                ready.add(rows)
                last = self.clock() - began - spent
        if ready:
            self.compile_seconds[model] = self.clock() - began

    def _prepare(self, race: Race, names: Sequence[str]) -> None:
        """Make contenders and run each once, which sets up what is set up once."""
        for name in names:
            self.report(f"{race.lot.case.model}: {race.lot.case.text}, {race.lot.loaded.engine}, {name}: warming up")
            try:
                run = race.lot.loaded.make(name, race.lot.case, race.lot.program)
                run()
            except (EndToEndError, RuntimeError) as error:
                race.left_out[name] = _one_line(error)
            else:
                race.runs[name] = run

    def _run(self, races: Sequence[Race], deadline: float) -> None:
        """Rounds of visits until the deadline; each case at least once, whatever the time."""
        count = sum(len(race.runs) for race in races)
        if not count:
            return
        visit = min(VISIT_SECONDS, max(0.0, deadline - self.clock()) / (ROUNDS * count))
        for round_ in range(MAX_ROUNDS):
            started = self.clock()
            for race in races:
                if round_ and self.clock() > deadline:
                    return
                case = race.lot.case
                self.report(f"{case.model}: round {round_ + 1}, {case.text}, {race.lot.loaded.engine}")
                race.visit(visit, deadline, self.clock)
            if self.clock() + (self.clock() - started) > deadline:
                return

    def _cell(self, case: Case, program: Program, bundle: Bundle, races: Sequence[Race], left: Sequence[Lot]) -> Cell:
        left_out = {f"{race.lot.loaded.engine} {name}": why for race in races for name, why in race.left_out.items()}
        for lot in left:
            if lot.case == case:
                left_out[lot.loaded.engine] = f"a round would take {lot.seconds:.1f} s, more than there is time for"
        floor = None
        if self.bandwidth is not None:
            floor = sum(_weight_bytes(bundle, line.network) for line in program.lines) / self.bandwidth
        timings = tuple(timing for race in races for timing in race.timings())
        return Cell(case, program.nfe, program.gradient_passes, timings, floor, left_out)


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
