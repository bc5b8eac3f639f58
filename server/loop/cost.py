"""What a step costs: an online fit of `seconds = fixed + per_row * rows` for one network."""

from __future__ import annotations

from math import ceil, sqrt


class StepCost:
    """Least squares with exponential forgetting over the batches that ran.

    The first batch of a network is left out: it pays for what is set up once, and can take ten times
    as long as any other. On its word alone, requests with deadlines would be refused.
    """

    def __init__(self, memory: float = 50.0) -> None:
        self._keep = 1.0 - 1.0 / memory
        self._weight = self._n = self._t = self._nn = self._nt = 0.0
        self._widest = 0
        self._cold = True
        self.fit = (0.0, 0.0)
        """(fixed, per_row) in seconds, neither negative. Asked far more often than batches run."""
        self.only_rows = 0
        """The one size that all batches have, as far as is remembered; 0 where there are several. From one size alone
        what a row costs cannot be told."""
        self.recorded_at = 0.0
        """When the last batch ended, on the clock of whoever records."""

    def record(self, rows: int, seconds: float) -> None:
        """A batch of `rows` network rows took `seconds`."""
        if self._cold:
            self._cold = False
            return
        keep = self._keep
        self._widest = max(self._widest, rows)
        self._weight = self._weight * keep + 1.0
        self._n = self._n * keep + rows
        self._t = self._t * keep + seconds
        self._nn = self._nn * keep + rows * rows
        self._nt = self._nt * keep + rows * seconds
        self.fit = self._line()

    def _line(self) -> tuple[float, float]:
        n, t = self._n / self._weight, self._t / self._weight
        spread = self._nn / self._weight - n * n
        self.only_rows = round(n) if spread < 1e-9 * n * n else 0
        if self.only_rows:
            return 0.0, t / n  # blame the rows
        per_row = (self._nt / self._weight - n * t) / spread
        if per_row <= 0.0:
            return t, 0.0
        fixed = t - per_row * n
        return (fixed, per_row) if fixed >= 0.0 else (0.0, t / n)

    def seconds(self, rows: float) -> float:
        """Predicted seconds of a batch; one wider than any that ran is taken to cost what the widest does.

        So that a prediction errs on the low side, and a request is not refused on the word of a few
        small batches, from which the cost of a row in a large one cannot be told.
        """
        fixed, per_row = self.fit
        return fixed + per_row * min(rows, self._widest)

    def rows_enough(self, share: float) -> int:
        """How many rows a batch needs for its fixed cost to be no more than a share of it (possibly 0 or huge)."""
        fixed, per_row = self.fit
        if per_row <= 0.0:
            return 1 << 30
        rows = fixed * (1.0 - share) / (share * per_row)
        return min(1 << 30, ceil(rows - 1e-6))  # a fit is not exact

    def rows_quickest(self, row_steps: float) -> int:
        """The rows of a batch by which those that wait are done soonest, in the mean (possibly 0 or huge).

        row_steps: what waits, rows times the steps that they have to go. Batches of n take f + n p. R rows go round in
        R/n of them; a row is done after s rounds, and has waited for about one batch more: the one that ran when it
        came, and the others of its last. Of `s R (f/n + p) + f + n p` the least is at `n = sqrt(s R f / p)`.
        """
        fixed, per_row = self.fit
        if per_row <= 0.0:
            return 1 << 30
        return min(1 << 30, int(sqrt(row_steps * fixed / per_row)))

    def rows_within(self, seconds: float) -> int:
        """How many rows are predicted to run within `seconds` (possibly 0 or huge)."""
        fixed, per_row = self.fit
        if per_row <= 0.0:
            return 1 << 30
        return int(max(0.0, seconds - fixed) / per_row)
