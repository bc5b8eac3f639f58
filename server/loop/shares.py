"""How the device is shared: each (model, kind of update) with work gets the same device time."""

from __future__ import annotations

from collections.abc import Iterable

from ..types import ModelKey

Share = tuple[ModelKey, str]


class Shares:
    """Device seconds that each share has had; whose are the least is served next."""

    def __init__(self) -> None:
        self._seconds: dict[Share, float] = {}

    def __getitem__(self, share: Share) -> float:
        return self._seconds[share]

    def spend(self, share: Share, seconds: float) -> None:
        """A batch of a share ran for so long."""
        self._seconds[share] += seconds

    def join(self, share: Share, busy: Iterable[Share]) -> None:
        """A share whose queue was empty joins at the level of the busy ones: no credit for idle time."""
        had = self._seconds.get(share, 0.0)
        self._seconds[share] = max(had, min((self._seconds[other] for other in busy), default=had))

    def forget(self, model: ModelKey) -> None:
        """Drop the shares of a model."""
        self._seconds = {share: spent for share, spent in self._seconds.items() if share[0] != model}
