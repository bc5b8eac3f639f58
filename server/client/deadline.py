"""How long a call may take."""

from __future__ import annotations

from numbers import Real

NO_DEADLINE_SECONDS = 1e8
"""Three years: the server takes a deadline from here on for none, and far beyond gRPC overflows into the past."""


def seconds_of(timeout: float | None) -> float | None:
    """A timeout as gRPC takes it; None, which is no deadline, for None, `inf` and whatever is as good as that.

    Raises:
        ValueError: no number, NaN or negative.
    """
    if timeout is None:
        return None
    if not (isinstance(timeout, Real) and timeout >= 0):
        raise ValueError(f"timeout: must be a number of seconds, 0 or more, got {timeout!r}")
    return None if timeout >= NO_DEADLINE_SECONDS else float(timeout)
