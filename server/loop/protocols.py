"""What the engine knows of whoever runs its batches: runners, their steps, and how these fail."""

from __future__ import annotations

from typing import Protocol

from ..errors import Internal
from ..types import Batch, Row


class NetworkError(Exception):
    """The network failed on a batch; its rows' states are as before, so that they may be tried again."""


class DeviceLost(Exception):
    """The device is of no use any more to this process; nothing that it is given will run."""


class Step(Protocol):
    """A batch that runs, or has run."""

    def finish(self) -> float:
        """Wait until it has run, and put on the rows what it gave (`server.types.Row`).

        Returns the seconds that the engine took of it.

        Raises:
            DeviceLost: see there.
        """


class Runner(Protocol):
    """One loaded model. Used by the engine's thread alone."""

    @property
    def capacity(self) -> int:
        """Slots: how many rows may be in flight."""

    def warm_up(self) -> None:
        """Do what would make the first requests slow. From the thread that loads the model."""

    def enqueue(self, batch: Batch) -> Step:
        """Take every row of the batch as many lines further as it has steps, in the order of these calls.

        Fewer where a later one of its steps cannot be run: its `steps` are then those that were.

        The rows may be in the next batch as soon as this has returned.

        Raises:
            NetworkError: the network could not be run. DeviceLost: see there.
        """


def non_finite(row: Row, line: int) -> Internal:
    """How a row fails that became infinite or not a number at line `line` (from 0)."""
    step = f"step {line + 1} of {len(row.program.lines)}"
    return Internal(f"sample {row.sample} of seed {row.seed} became non-finite at {step}")
