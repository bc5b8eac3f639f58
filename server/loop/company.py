"""Whether requests have a device to themselves: whoever submits such a one may take its steps, and no thread is woken.

To wake the engine's thread and to be woken by it takes longer than many a step of a small network. It is spared only
where nobody else is kept waiting by that: an event loop that runs steps reads no requests meanwhile, so that under load
batches would stay small.
"""

from __future__ import annotations

LOOK_EVERY = 8
"""One job in so many goes to the engine's thread, whatever is known: only while that one runs others can arrive, and be
seen. Those that wait before an event loop that runs steps cannot."""

MEMORY = 16
"""Over about so many looks the share of jobs that had company is taken."""

MOST_COMPANY = 0.2
"""The share of jobs that may have company, and others still be taken to be alone. Of two, four and sixteen clients that
wait for their answers 0.87 and more of the jobs do: half a dozen are run at once when the clients arrive, and then none
(2 cores, one-step requests)."""


class Company:
    """Learns from those jobs that are left to the engine's thread how many of all arrive while there are others."""

    def __init__(self) -> None:
        self._share = 1.0
        self._since_look = 0

    def arrive(self, others: int) -> bool:
        """A job has arrived where there are so many others; returns whether it is alone, and most jobs are."""
        self._since_look += 1
        if not others and self._share < MOST_COMPANY and self._since_look < LOOK_EVERY:
            return True
        self._since_look = 0
        self._share += (float(others > 0) - self._share) / MEMORY
        return False
