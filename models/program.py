"""Programs: a request compiled into a table, one line a step (DESIGN 1).

Every update of the five papers is linear in a few tensors with coefficients that are known before
the first step. So all that depends on a paper happens in `models.samplers`, in float64, when a
request is admitted; whoever runs a program (`models.run` offline, `server.loop` online) knows no paper.

A row has registers: `sample`, shaped as an image, which is what the caller gets in the end, and those that its model's
card declares (`ModelCard.registers`), such as the latents of a hierarchical prior.

Draws of noise are numbered within a row, so that no two are the same: the start, line i's latent, and line i's noise
on each register, see `start_draw`, `latent_draw` and `noise_draw`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

INFINITY = float("inf")
SAMPLE = "sample"
"""The register that every row has: the image in the making."""

REGISTER_DRAWS = 1 << 20
"""Draw numbers kept for each register; a program has fewer than half as many lines."""

_DECISIONS = 1000  # counted as a register that no card can have


class EnsembleUpdate(NamedTuple):
    """Coefficients of the ensemble update, in the order of the kernel's coefficient columns.

    out = output + guidance (output - null_output)
    p   = clip(p_state x + p_output out, low, high)         prediction of the clean image
    y  <- y_accumulator y + y_prediction p                  accumulator (iDDIM eq. 33)
    x  <- state x + prediction p + anchor x_T + accumulator y + noise n + sum_k history_k p_k
    """

    guidance: float
    p_state: float
    p_output: float
    low: float
    high: float
    state: float
    prediction: float
    anchor: float
    accumulator: float
    noise: float
    y_accumulator: float
    y_prediction: float


class LangevinUpdate(NamedTuple):
    """Coefficients of the Langevin update (SPEC 7), in the order of the kernel's coefficient columns.

    d  = gradient_ g,  scaled down to the norm max_displacement where it is longer
    x <- clip(state x + anchor x_anchor + d + noise n, low, high)
    """

    state: float
    anchor: float
    gradient: float
    noise: float
    max_displacement: float
    low: float
    high: float


class MetropolisUpdate(NamedTuple):
    """Coefficients of a Metropolis-adjusted Langevin step (MALA, SPEC 7), in the order of the kernel's columns.

    The row keeps its place x with its energy U and gradient g, and its state x' is a proposal made from there.
    With U', g' at x', x' is taken with probability min(1, exp(
        -b (U' - U) - |x - x' + a b g'|^2 / (4 a) + |x' - x + a b g|^2 / (4 a))), a = judged_step, b = judged_beta,
    and never outside [low, high]; then the next proposal is `x' <- x - step beta g + sqrt(2 step) n`.
    beta: inverse temperature times the energy's sign and scale. judged_step: 0: x' is the start, and is taken.
    step: 0 after the last step, which leaves x' = x.
    """

    judged_beta: float
    judged_step: float
    beta: float
    step: float
    low: float
    high: float


Rule = EnsembleUpdate | LangevinUpdate | MetropolisUpdate


@lru_cache(maxsize=4096)
def _columns(rule: Rule) -> npt.NDArray[np.float32]:
    """A rule as the kernels read it, float32, read-only; one for all the lines that have it."""
    row = np.array(rule, dtype=np.float32)
    row.setflags(write=False)
    return row


@dataclass(frozen=True, slots=True)
class Update:
    """What a line does to one register.

    output: which output of the network enters: the prediction's source, or the gradient.
    noise: draw number of the rule's noise, or None. shared: all samples of a request get sample 0's noise.
    decision: draw number of the Gaussian that decides on a proposal, for a `MetropolisUpdate` that judges one.
    history: weights of the predictions of the lines before, oldest first (iDDIM eq. 4).
    """

    rule: Rule
    register: str = SAMPLE
    output: int = 0
    noise: int | None = None
    shared: bool = False
    decision: int | None = None
    history: tuple[float, ...] = ()
    coefficients: npt.NDArray[np.float32] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "coefficients", _columns(self.rule))


def assign(
    register: str = SAMPLE, output: int = 0, *, scale: float = 1.0, noise: float = 0.0, draw: int | None = None
) -> Update:
    """`register <- scale out + noise n`; draw: number of the noise where there is any."""
    rule = EnsembleUpdate(0.0, 0.0, 1.0, -INFINITY, INFINITY, 0.0, scale, 0.0, 0.0, noise, 0.0, 0.0)
    return Update(rule, register, output, noise=draw if noise else None)


@dataclass(frozen=True, slots=True)
class Line:
    """One step of a program.

    network: the graph to run. scalars: its scalar inputs by name. updates: what becomes of which register, at most
    one for each; none: the line is a score, the network's first output. guided: run the network a second time with the
    null label (two network rows). latent: draw number of the fresh latent, or None. sets_anchor: the registers that
    this line updates become their own anchors first.
    """

    network: str
    scalars: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    updates: tuple[Update, ...] = ()
    guided: bool = False
    latent: int | None = None
    sets_anchor: bool = False
    kind: str = field(init=False, compare=False)
    """What the rows of one batch must have in common besides the network: score, ensemble, langevin or metropolis."""

    def __post_init__(self) -> None:
        kinds = [_kind(update.rule) for update in self.updates]
        kind = kinds[0] if len(kinds) == 1 else max(kinds, default="score", key=_KINDS.index)
        object.__setattr__(self, "kind", kind)

    @property
    def takes_gradient(self) -> bool:
        return self.kind in ("langevin", "metropolis")


_KINDS = ("score", "ensemble", "langevin", "metropolis")


def _kind(rule: Rule) -> str:
    if isinstance(rule, EnsembleUpdate):
        return "ensemble"
    return "langevin" if isinstance(rule, LangevinUpdate) else "metropolis"


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled request: how its registers start, and its lines.

    The sample starts as `image_scale * image + noise_scale * n`, with the caller's image where it is needed (scoring,
    refining); registers gives the std of each other register's start. shared_start: all samples of a request start
    from sample 0's noise. steps: as the method counts them and its callers ask for them; by default as many as lines.
    """

    image_scale: float
    noise_scale: float
    lines: tuple[Line, ...]
    registers: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    uses_accumulator: bool = False
    shared_start: bool = False
    steps: int = 0
    nfe: int = field(init=False, repr=False, compare=False)
    """Network function evaluations: forward passes, two for a guided line."""
    gradient_passes: int = field(init=False, repr=False, compare=False)
    """Backward passes, counted beside NFE and never inside it."""
    kept_predictions: int = field(init=False, repr=False, compare=False)
    """How many lines' predictions are kept for the lines after them: all but the last's, where one weights them."""
    line_counts: Mapping[tuple[str, str], int] = field(init=False, repr=False, compare=False)
    """How many lines run each network with each kind of update."""
    alike: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """For each line, how many lines from it on have its network, its kind of update and its guidance in a row."""

    def __post_init__(self) -> None:
        if not self.lines:
            raise ValueError("a program needs at least one line")
        object.__setattr__(self, "steps", self.steps or len(self.lines))
        # Counted once: a program serves many requests, and each asks for these.
        object.__setattr__(self, "nfe", sum(2 if line.guided else 1 for line in self.lines))
        object.__setattr__(self, "gradient_passes", sum(line.takes_gradient for line in self.lines))
        weighted = any(update.history for line in self.lines for update in line.updates)
        object.__setattr__(self, "kept_predictions", len(self.lines) - 1 if weighted else 0)
        alike: list[int] = []
        for line, after in zip(reversed(self.lines), (None, *reversed(self.lines)), strict=False):
            same = after is not None and _batch_of(line) == _batch_of(after)
            alike.append(alike[-1] + 1 if same else 1)
        object.__setattr__(self, "alike", tuple(reversed(alike)))
        object.__setattr__(self, "line_counts", Counter((line.network, line.kind) for line in self.lines))

    @property
    def needs_image(self) -> bool:
        return self.image_scale != 0.0

    def start_std(self, register: str) -> float:
        """The std of a register's start; 0 for one that starts at zero, or at the image alone."""
        return self.noise_scale if register == SAMPLE else self.registers.get(register, 0.0)


def _batch_of(line: Line) -> tuple[str, str, bool]:
    return line.network, line.kind, line.guided


def start_draw(register: int = 0) -> int:
    """The draw number of a register's start. register: 0 for `sample`, then 1, 2.. in the order of the card."""
    return register * REGISTER_DRAWS


def latent_draw(line: int) -> int:
    """The draw number of the latent of line `line` (from 0)."""
    return 2 * line + 1


def noise_draw(line: int, register: int = 0) -> int:
    """The draw number of the noise of line `line` (from 0) on a register, counted as in `start_draw`."""
    return register * REGISTER_DRAWS + 2 * line + 2


def accept_draw(line: int) -> int:
    """The draw number of the one Gaussian that decides on a proposal (`MetropolisUpdate`)."""
    return noise_draw(line, _DECISIONS)
