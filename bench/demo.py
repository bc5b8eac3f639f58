"""`python -m bench demo`: the whole chain on the shipped checkpoints, from export to pictures and scores.

Exports the checkpoints into a model repository, starts a server over it, asks it as a client would, stops it by
SIGTERM, and leaves two pictures, a JSON file and the server's log. Any step that fails ends it with a message.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from models.machine import ROOT
from server.client import FewstepClient, SampleOptions, Scores

from . import board
from .environment import Environment, describe_environment
from .percentiles import percentile
from .quality import DIFFUSION, VDRME, Method, Quality, measure, steps_option
from .server_process import ServerFailed, ServerProcess

if TYPE_CHECKING:
    from models.metrics.ood import DetectionResult

    from .pictures import SampleRow, ScoredSet

MODELS = (
    *("digits-ddpm", "digits-vdrme", "digits-gdim", "digits-gdim-start", "digits-hat", "digits-latent"),
    board.MODEL,
)
CHECKPOINTS = tuple(Path("models/zoo") / name for name in MODELS)
EXPORT_TIMEOUT = 600.0
STEPS = (4, 8, 10, 20)
BEST_M = {4: 1.0, 8: 0.8, 10: 0.5, 20: 0.15}
"""iDDIM's best ensemble weight on digits at each number of steps, by `python -m bench quality`."""
OTHERS = (
    Method("t-GDIM", "digits-gdim", {"sampler": "gdim", "m": 1.0}, (4,)),
    Method("T-GDIM", "digits-gdim-start", {"sampler": "gdim", "m": 1.0}, (4,)),
    Method("Hat, G(z) alone", "digits-hat", {"parameters": {"stage": 0}}),
    Method("Hat, stage 1", "digits-hat", {"parameters": {"stage": 1}}),
    Method("Hat, stage 2", "digits-hat", {"parameters": {"stage": 2}}),
    Method("Gaussian prior", "digits-latent", {"parameters": {"langevin_steps": 0}}),
    Method("EBM prior", "digits-latent", {"parameters": {"langevin_steps": 30}}),
)
"""What is shown of the other models, as far as they are there."""
SAMPLES = 400
"""For each FD-digits: what two cores draw in half a minute. About as many as there are test images, whose figure is
therefore a fair floor; `python -m bench quality` takes 2000, whose figures are lower (`models.metrics.frechet`)."""
SHOWN = 16
LATENCY_REQUESTS = 30
LATENCY_SECONDS = 2.0
"""After which no further request is sent, so that a chain of a hundred steps takes no minute."""
SCORED_AT_ONCE = 200
SEED = 7


class DemoError(Exception):
    """A step of the demo that failed; the message says which and why."""


@dataclass(frozen=True)
class Line:
    """One line of the table of samplers. latency_p50, latency_p95: seconds, one sample alone, as the client sees it."""

    model: str
    sampler: str
    m: float | None
    steps: int | None
    nfe: int
    latency_p50: float
    latency_p95: float
    frechet: float


def methods_for(models: Sequence[str], vdrme_steps: Sequence[int]) -> list[Method]:
    """The methods to compare, one for each sampler and ensemble weight, as far as the models are there."""
    methods = []
    if DIFFUSION in models:
        methods.append(Method("DDIM", DIFFUSION, {"sampler": "ddim"}, STEPS))
        methods += [Method("iDDIM", DIFFUSION, {"sampler": "iddim", "m": BEST_M[s]}, (s,)) for s in STEPS]
    if VDRME in models:
        methods.append(Method("VDRME", VDRME, {"sampler": "vdrme"}, tuple(vdrme_steps)))
    return [*methods, *(method for method in OTHERS if method.model in models)]


def weight_of(method: Method) -> float | None:
    """The ensemble weight of a method, where it has one."""
    weight = method.options.get("m")
    return float(weight) if isinstance(weight, (int, float)) else None


def export(checkpoints: Sequence[Path], repository: Path) -> str:
    """Export checkpoints into a repository, in a process of its own; bundles that are up to date are kept.

    Returns: what the exporter printed.

    Raises:
        DemoError: the exporter failed or took too long; ends with what it said.
    """
    command = [
        sys.executable,
        "-m",
        "export",
        *map(str, checkpoints),
        "--repository",
        os.path.relpath(repository, ROOT),
        "--jobs",
        str(min(4, os.cpu_count() or 1)),
    ]
    # In a session of its own: the exporter has processes of its own, which outlive it where it alone is killed.
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as exporter:
        try:
            output, errors = exporter.communicate(timeout=EXPORT_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(exporter.pid, signal.SIGKILL)
            raise DemoError(f"export did not end within {EXPORT_TIMEOUT:g} s") from None
        except BaseException:  # an interrupt from the keyboard does not reach that session
            os.killpg(exporter.pid, signal.SIGKILL)
            raise
    if exporter.returncode != 0:
        raise DemoError(f"export ended with code {exporter.returncode}:\n{errors.strip()[-2000:]}")
    return output


def latencies(client: FewstepClient, method: Method, steps: int | None) -> tuple[float, float]:
    """p50 and p95 in seconds of requests for one sample, one after the other, after two that warm up."""
    times: list[float] = []
    options: SampleOptions = {**method.options, **steps_option(steps), "seed": SEED}
    for index in range(LATENCY_REQUESTS + 2):
        started = time.perf_counter()
        client.sample(method.model, **options)
        if index >= 2:
            times.append(time.perf_counter() - started)
        if sum(times) > LATENCY_SECONDS:
            break
    return percentile(times, 50), percentile(times, 95)


def score_all(client: FewstepClient, model: str, images: NDArray[np.float32]) -> tuple[NDArray[np.float64], Scores]:
    """Energies `(count,)` of all images at the model's default scale, in several requests, and the last answer."""
    energies = []
    for start in range(0, len(images), SCORED_AT_ONCE):
        scores = client.score(model, images[start : start + SCORED_AT_ONCE], seed=SEED)
        energies.append(scores.default.energy)
    return np.concatenate(energies), scores


class Demo:
    """One run: what it measures, step by step, against one server."""

    def __init__(self, client: FewstepClient, step: Callable[[str], None]) -> None:
        self._client = client
        self._step = step
        models = client.models()
        names = [model.name for model in models]
        vdrme_steps = client.describe(VDRME).accepted_steps if VDRME in names else ()
        self.methods = methods_for(names, vdrme_steps)
        self.has_board = board.MODEL in names
        scoring = [model.name for model in models if model.scores and model.name != board.MODEL]
        scorers = sorted(scoring, key=lambda name: (name != VDRME, name))
        self.scorer = scorers[0] if scorers else None
        self.other_scorers = scorers[1:]
        if not self.methods:
            raise DemoError(f"the server has neither {DIFFUSION} nor {VDRME}; it has {', '.join(names) or 'no model'}")

    def samplers(self) -> tuple[list[Line], float]:
        """Latency and FD-digits of every method, and the FD-digits of the test images."""
        from models.metrics.frechet import FrechetDigits  # torch and scikit-learn take seconds to import

        metric = FrechetDigits.load()
        lines = []
        for method in self.methods:
            for steps in method.steps:
                self._step(method.name if steps is None else f"{method.name}, {steps} steps")
                p50, p95 = latencies(self._client, method, steps)
                one = Method(method.name, method.model, method.options, (steps,))
                quality: Quality = measure(self._client, metric, [one], SAMPLES, SEED)[0]
                lines.append(
                    Line(method.model, method.name, weight_of(method), steps, quality.nfe, p50, p95, quality.frechet)
                )
        return lines, metric.floor

    def pictures(self, lines: Sequence[Line]) -> dict[str, list[SampleRow]]:
        """A row of samples for every line, from the same seed; without labels, as those that FD-digits is taken of."""
        from .pictures import SampleRow

        self._step("samples to look at")
        groups: dict[str, list[SampleRow]] = {}
        methods = [(method, steps) for method in self.methods for steps in method.steps]
        for (method, steps), line in zip(methods, lines, strict=True):
            options: SampleOptions = {**method.options, **steps_option(steps), "seed": SEED, "count": SHOWN}
            images = self._client.sample(method.model, **options).images
            label = f"{line.nfe} NFE" if line.m is None else f"{line.nfe} NFE\nm = {line.m:g}"
            groups.setdefault(f"{method.name}  ({method.model})", []).append(
                SampleRow(label, f"FD {line.frechet:.1f}", images)
            )
        return groups

    def checkerboard(self) -> board.Board | None:
        """Points and energies of the model on the plane, where it is there."""
        if not self.has_board:
            return None
        self._step("checkerboard")
        return board.ask_board(self._client, SEED)

    def other_scores(self) -> dict[str, list[DetectionResult]]:
        """What the other models' energies make of one set of each category, with one seed."""
        from models.data import load_digits_split
        from models.metrics.ood import OOD_SETS, evaluate

        test = load_digits_split().test.images
        chosen = {entry.category: entry for entry in reversed(OOD_SETS)}
        found = {}
        for model in self.other_scorers:
            self._step(f"scores of {model}")
            energy = partial(self._energies, model)
            found[model] = evaluate(energy, test, seeds=(SEED,), sets=list(chosen.values())[::-1])
        return found

    def _energies(self, model: str, images: NDArray[np.float32]) -> NDArray[np.float64]:
        return score_all(self._client, model, images)[0]

    def scores(self) -> tuple[list[DetectionResult], list[ScoredSet], NDArray[np.float64], Scores] | None:
        """How well the energy tells the test digits from each out-of-distribution set; None without an energy."""
        from models.data import load_digits_split
        from models.metrics.ood import OOD_SETS, evaluate

        from .pictures import ScoredSet

        if self.scorer is None:
            return None
        model = self.scorer
        test = load_digits_split().test.images
        self._step("scores of the test digits")
        inside, answer = score_all(self._client, model, test)
        self._step("scores of the out-of-distribution sets")
        results = evaluate(partial(self._energies, model), test)
        sets = []
        for entry, result in zip(OOD_SETS, results, strict=True):
            energy, _ = score_all(self._client, model, entry.images(test, SEED))
            note = (
                f"AUROC {result.metrics.auroc:.3f} [{result.auroc_interval.low:.3f}, {result.auroc_interval.high:.3f}]"
            )
            sets.append(ScoredSet(entry.description, entry.category, energy, note))
        return results, sets, inside, answer


def sampler_table(lines: Sequence[Line], floor: float) -> Table:
    """What each sampler costs and gives."""
    table = Table(
        title=f"Samplers (FD-digits of {SAMPLES} samples; the 397 test images: {floor:.1f})", title_justify="left"
    )
    for column in ("model", "sampler"):
        table.add_column(column)
    for column in ("NFE", "p50 ms", "p95 ms", "FD-digits"):
        table.add_column(column, justify="right")
    for line in lines:
        name = line.sampler if line.m is None else f"{line.sampler} m={line.m:g}"
        times = (f"{1e3 * line.latency_p50:.1f}", f"{1e3 * line.latency_p95:.1f}")
        table.add_row(line.model, name, str(line.nfe), *times, f"{line.frechet:.1f}")
    return table


def score_table(
    model: str, results: Sequence[DetectionResult], sets: Sequence[ScoredSet], threshold: float | None
) -> Table:
    """How well each set is told from the digits."""
    table = Table(title=f"Energy of {model}, test digits against", title_justify="left")
    for column in ("category", "set"):
        table.add_column(column)
    for column in ("AUROC", "95% interval", "called out"):
        table.add_column(column, justify="right")
    before = ""
    for result, entry in zip(results, sets, strict=True):
        caught = "-" if threshold is None else f"{100 * np.mean(entry.energy > threshold):.0f}%"
        interval = f"{result.auroc_interval.low:.3f} - {result.auroc_interval.high:.3f}"
        category = result.category if result.category != before else ""
        table.add_row(category, entry.name, f"{result.metrics.auroc:.3f}", interval, caught)
        before = result.category
    return table


def other_scores_table(found: Mapping[str, Sequence[DetectionResult]]) -> Table:
    """AUROC of each model on the sets that all were asked about."""
    table = Table(title="AUROC of the other models' energies, one seed", title_justify="left")
    table.add_column("model")
    for result in next(iter(found.values())):
        table.add_column(result.name, justify="right")
    for model, results in found.items():
        table.add_row(model, *(f"{result.metrics.auroc:.3f}" for result in results))
    return table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench demo`."""
    parser.add_argument(
        "checkpoints", nargs="*", type=Path, default=list(CHECKPOINTS), help="default: one of each method"
    )
    parser.add_argument("--output", type=Path, default=Path("out/demo"), help="folder, default %(default)s")


@contextmanager
def _steps(console: Console) -> Iterator[Callable[[str], None]]:
    """A line that says what is going on and for how long; each step that ends stays above it."""
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True
    ) as bar:
        task = bar.add_task("", total=None)
        current = ("", time.monotonic())

        def step(name: str) -> None:
            nonlocal current
            if current[0]:
                console.print(f"{time.monotonic() - current[1]:6.1f} s  {current[0]}")
            current = (name, time.monotonic())
            bar.update(task, description=name)

        yield step
        step("")


def main(options: argparse.Namespace, console: Console) -> int:
    """Run the demo; 0 where every step went well."""
    started = time.monotonic()
    environment = describe_environment()
    try:
        with _steps(console) as step:
            document, tables, written = _run(options, environment, step)
    except (DemoError, ServerFailed) as error:
        console.print(f"demo failed: {error}")
        return 1
    document["seconds"] = time.monotonic() - started
    path = options.output / "demo.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document, enc_hook=_plain), indent=1) + b"\n")
    for table in tables:
        console.print(table)
    console.print(f"wrote {', '.join(str(options.output / name) for name in written)}", soft_wrap=True)
    console.print(f"done in {document['seconds']:.0f} s")
    return 0


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"no JSON form for {type(value).__name__}")


def _run(
    options: argparse.Namespace, environment: Environment, step: Callable[[str], None]
) -> tuple[dict[str, Any], list[Table | str], list[str]]:
    for checkpoint in options.checkpoints:
        if not (ROOT / checkpoint).is_dir():
            raise DemoError(f"no checkpoint at {checkpoint}: `make zoo` trains the shipped ones")
    options.output.mkdir(parents=True, exist_ok=True)
    repository = options.output / "repository"
    step(f"export to {repository}")
    parity = export(options.checkpoints, repository)
    step("start of the server")
    with ServerProcess(repository, options.output / "server.log") as server, FewstepClient(server.address) as client:
        demo = Demo(client, step)
        status = client.status()
        lines, floor = demo.samplers()
        groups = demo.pictures(lines)
        plane = demo.checkerboard()
        scored = demo.scores()
        others = demo.other_scores()
        step("stop of the server")
        code = server.stop()
    if code != 0:
        raise DemoError(f"the server ended with code {code} on SIGTERM; see {server.log}")
    step("pictures")
    from .pictures import draw_samples, draw_scores

    foot = environment.line()
    title = "Digits by method and number of network evaluations (NFE), the same seed in every row"
    what = f"FD: FD-digits of {SAMPLES} samples; the 397 test images: {floor:.1f}.   {foot}"
    draw_samples(options.output / "samples.png", groups, title, what, plane)
    tables: list[Table | str] = [parity, sampler_table(lines, floor)]
    written = ["demo.json", "samples.png"]
    document: dict[str, Any] = {
        "environment": environment,
        "server": {"version": status.version, "engine": status.engine, "start_seconds": server.start_seconds},
        "samples": {"count": SAMPLES, "floor": floor, "methods": lines},
    }
    if scored is not None and demo.scorer is not None:
        results, sets, inside, answer = scored
        threshold = answer.default.threshold
        heading = f"Energy of {demo.scorer}, scale {answer.default.scale}"
        draw_scores(options.output / "scores.png", inside, sets, threshold, answer.false_alarm_rate, heading, foot)
        written.append("scores.png")
        tables.append(score_table(demo.scorer, results, sets, threshold))
        document["scores"] = {
            "model": demo.scorer,
            "scale": answer.default.scale,
            "threshold": threshold,
            "false_alarm_rate": answer.false_alarm_rate,
            "false_alarms_on_test": None if threshold is None else float(np.mean(inside > threshold)),
            "sets": [asdict(result) for result in results],
        }
    if others:
        tables.append(other_scores_table(others))
        document["other_scores"] = {model: [asdict(result) for result in found] for model, found in others.items()}
    return document, tables, written
