"""Programs: a request compiled into a table, one line a step (DESIGN 1).

Every update of the five papers is linear in a few tensors with coefficients that are known before
the first step. So all that depends on a paper happens in `models.samplers`, in float64, when a
request is admitted; whoever runs a program (`models.run` offline, `server.loop` online) knows no paper.

Draws of noise are numbered within a row: draw 0 is the start, line i (from 0) takes draw 2i + 1 for
its latent and draw 2i + 2 for its update.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

INFINITY = float("inf")


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


@dataclass(frozen=True, slots=True)
class Line:
    """One step of a program.

    network: the graph to run. scalars: its scalar inputs by name. guided: run it a second time with
    the null label (two network rows). latent, noise: draw numbers of the fresh latent and of the
    update's noise, or None. update: None leaves the state alone (a score). history: weights of the
    predictions of the lines before, oldest first (iDDIM eq. 4).
    """

    network: str
    scalars: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    guided: bool = False
    latent: int | None = None
    noise: int | None = None
    update: EnsembleUpdate | LangevinUpdate | None = None
    history: tuple[float, ...] = ()

    @property
    def kind(self) -> str:
        """What the rows of one batch must have in common besides the network."""
        return "score" if self.update is None else "ensemble" if isinstance(self.update, EnsembleUpdate) else "langevin"


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled request: the start, `x = image_scale * image + noise_scale * n_0`, and its lines.

    needs_image: the caller's image enters (scoring, refining). keeps_history: the row stores every
    prediction. coefficients: the update of each line as the kernels read it, float32, read-only.
    gradient_passes are counted beside NFE, never inside it.
    """

    FIRST_DRAW: ClassVar[int] = 0

    image_scale: float
    noise_scale: float
    lines: tuple[Line, ...]
    uses_accumulator: bool = False
    coefficients: tuple[npt.NDArray[np.float32], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.lines:
            raise ValueError("a program needs at least one line")
        object.__setattr__(self, "coefficients", tuple(_coefficients(self.lines)))

    @property
    def needs_image(self) -> bool:
        return self.image_scale != 0.0

    @property
    def keeps_history(self) -> bool:
        return any(line.history for line in self.lines)

    @property
    def nfe(self) -> int:
        """Network function evaluations: forward passes, two for a guided line."""
        return sum(2 if line.guided else 1 for line in self.lines)

    @property
    def gradient_passes(self) -> int:
        return sum(1 for line in self.lines if isinstance(line.update, LangevinUpdate))


def _coefficients(lines: tuple[Line, ...]) -> Iterator[npt.NDArray[np.float32]]:
    """One read-only row a line; lines in a row with the same update share it, as thousands of Langevin steps do."""
    row = np.empty(0, dtype=np.float32)
    for index, line in enumerate(lines):
        if index == 0 or line.update is not lines[index - 1].update:
            row = np.array(line.update or (), dtype=np.float32)
            row.setflags(write=False)
        yield row


def latent_draw(line: int) -> int:
    """The draw number of the latent of line `line` (from 0)."""
    return 2 * line + 1


def noise_draw(line: int) -> int:
    """The draw number of the update noise of line `line` (from 0)."""
    return 2 * line + 2
