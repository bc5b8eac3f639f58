"""Servers that do not compute the same are not compared."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench.compare.agreement import Disagreement, check_agreement
from bench.compare.caller import CallerError, Draw
from bench.peers.engine import Engine, load_engines

DRAWS = (Draw("digits-ddpm", "ddim", 4, (7, 8)), Draw("absent", "ddim", 1, (7,)))


@pytest.fixture(scope="module")
def engines(repository: Path) -> dict[str, Engine]:
    return {
        name: engine for name, engine in load_engines(repository, 1).items() if name in ("digits-ddpm", "digits-vdrme")
    }


class Stand:
    """A server and its caller in one: the engine's answers, changed by `spoil`."""

    def __init__(self, engines: dict[str, Engine], spoil: Callable[[Any], Any] = lambda values: values) -> None:
        self.peer = SimpleNamespace(title="the stand-in")
        self.engines, self.spoil = engines, spoil

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def caller(self) -> Iterator[Stand]:
        yield self

    def sampling(self, draw: Draw) -> Callable[[], bytes]:
        engine = self.engines[draw.model]
        (images,) = engine.run([engine.sample_request(draw.sampler, draw.steps, draw.seeds)])
        return lambda: self.spoil(images).astype("<f4").tobytes()

    def score(self, model: str, images: Any) -> Any:
        engine = self.engines[model]
        return self.spoil(engine.run([engine.score_request(images)])[0])


def test_servers_that_agree_pass(engines: dict[str, Engine]) -> None:
    """Models that the repository does not have are not asked for."""
    check_agreement([Stand(engines), Stand(engines, lambda values: values + 2e-6)], engines, DRAWS)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda values: values + np.float32(1e-3),
            r"the stand-in: ddim 4 of digits-ddpm: off by 0\.001, at most 1e-05",
        ),
        (lambda values: values[:1], "64 values, the engine gives 128"),
        (lambda values: values * np.nan, "off by nan"),
    ],
)
def test_what_differs_is_named(engines: dict[str, Engine], spoil: Callable[[Any], Any], message: str) -> None:
    """The server, what was asked, and by how much it is off; no number at all is off too."""
    with pytest.raises(Disagreement, match=message):
        check_agreement([Stand(engines), Stand(engines, spoil)], engines, DRAWS)


def test_wrong_scores_are_found(engines: dict[str, Engine]) -> None:
    """Where the samples are right."""
    with pytest.raises(Disagreement, match="scores of digits-vdrme"):
        check_agreement([Stand(engines, lambda values: values - 1 if values.ndim == 1 else values)], engines, DRAWS)


def test_a_server_that_does_not_answer_is_named(engines: dict[str, Engine]) -> None:
    """With what it said."""

    def refuse(values: Any) -> Any:
        raise CallerError("UNAVAILABLE: no")

    with pytest.raises(Disagreement, match="the stand-in does not answer: UNAVAILABLE: no"):
        check_agreement([Stand(engines, refuse)], engines, DRAWS)
