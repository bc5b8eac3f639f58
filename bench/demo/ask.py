"""What the demo asks a server: samples of every method, their latencies, scores of every energy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from server.client import FewstepClient, RefineOptions, SampleOptions, Scores

from .. import board
from ..percentiles import percentile
from ..quality import DIFFUSION, VDRME, Method, Quality, measure, steps_option
from .errors import DemoError

if TYPE_CHECKING:
    from models.metrics.ood import DetectionResult

    from ..pictures import SampleRow, ScoredSet


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
GUIDANCE = (0.0, 1.0, 4.0)
GUIDED_STEPS = 20
REFINEMENTS: tuple[tuple[str, str, RefineOptions], ...] = (
    ("digits-vdrme", "Langevin", {"method": "langevin", "steps": 50}),
    ("digits-vdrme", "no noise", {"method": "langevin", "steps": 50, "temperature": 0.0}),
    (
        "digits-vdrme",
        "MALA, |x| < 2",  # which rejects what leaves the box: pixels of digits lie on the edge of theirs
        {"method": "langevin", "steps": 50, "step_size": 0.01, "parameters": {"metropolis": 1, "low": -2, "high": 2}},
    ),
    ("digits-hat", "transition", {"method": "transition", "steps": 1}),
)
"""What is done to digits with noise on them, as far as the models are there."""
NOISE = 0.3
SAMPLES = 400
"""For each FD-digits: what two cores draw in half a minute. About as many as there are test images, whose figure is
therefore a fair floor; `python -m bench quality` takes 2000, whose figures are lower (`models.metrics.frechet`)."""
SHOWN = 16
LATENCY_REQUESTS = 30
LATENCY_SECONDS = 2.0
"""After which no further request is sent, so that a chain of a hundred steps takes no minute."""
SCORED_AT_ONCE = 200
SEED = 7


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
        self._names = names
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
        from ..pictures import SampleRow

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

    def guided(self) -> dict[str, list[SampleRow]]:
        """The labels 0 to 9 in turn, by guidance's own sampler at several weights, from the same seed."""
        from ..pictures import SampleRow

        if DIFFUSION not in self._names:
            return {}
        self._step("guidance")
        rows = []
        for weight in GUIDANCE:
            drawn = self._client.sample(
                DIFFUSION,
                sampler="ancestral",
                steps=GUIDED_STEPS,
                guidance=weight,
                labels=[place % 10 for place in range(SHOWN)],
                count=SHOWN,
                seed=SEED,
            )
            rows.append(SampleRow(f"{drawn.nfe} NFE\nw = {weight:g}", "", drawn.images))
        return {f"Guidance, its own sampler, asked for 0 to 9  ({DIFFUSION})": rows}

    def refined(self) -> dict[str, list[SampleRow]]:
        """Test digits with noise on them, and what each model's refinements make of them; with mean energies."""
        from models.data import load_digits_split

        from ..pictures import SampleRow

        clean = load_digits_split().test.images[:SHOWN]
        noise = np.random.default_rng(SEED).standard_normal(clean.shape, np.float32)
        given = np.clip(clean + NOISE * noise, -1, 1).astype(np.float32)
        groups: dict[str, list[SampleRow]] = {}
        for model, name, options in REFINEMENTS:
            if model not in self._names:
                continue
            self._step(f"refinement, {name}")
            chosen: RefineOptions = {**options, "seed": SEED}
            found = self._client.refine(model, given, **chosen)
            rows = groups.setdefault(f"Digits with noise, refined  ({model})", [])
            if not rows:
                rows.append(SampleRow("given", f"E {found.energy_before.mean():.3g}", given))
            rows.append(
                SampleRow(
                    f"{name}\n{found.gradient_passes} gradients"
                    if found.gradient_passes
                    else f"{name}\n{found.nfe} NFE",
                    f"E {found.energy_after.mean():.3g}",
                    found.images,
                )
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
        from models.metrics.ood import evaluate
        from models.metrics.outliers import OOD_SETS

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
        from models.metrics.ood import evaluate
        from models.metrics.outliers import OOD_SETS

        from ..pictures import ScoredSet

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
