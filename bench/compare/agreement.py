"""Before anything is measured: all servers compute the same. A comparison of those that do not would say nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from bench.peers.engine import Engine

from .caller import CallerError, Draw
from .scenarios import LARGE, SCORER, SMALL
from .servers import Running

TOLERANCE = 1e-5
"""Largest difference, against the engine in this process; relative where values are above 1."""
DRAWS = (
    Draw(SMALL, "ddim", 4, (7, 2**40)),
    Draw(SCORER, "vdrme", 4, (7, 8)),
    Draw(SCORER, "langevin", 8, (7, 8)),
    Draw(LARGE, "ddim", 1, (7,)),
)


class Disagreement(Exception):
    """Servers that do not compute the same; the message says which, what and by how much."""


def check_agreement(servers: Sequence[Running], engines: Mapping[str, Engine], draws: Sequence[Draw] = DRAWS) -> None:
    """Ask every server for the same samples and scores.

    Raises:
        Disagreement: an answer differs from the engine's in this process, or there is none.
    """
    expected = {draw: _drawn(engines[draw.model], draw) for draw in draws if draw.model in engines}
    images = np.random.Generator(np.random.PCG64(1)).uniform(-1.0, 1.0, (3, 1, 8, 8)).astype(np.float32)
    scorer = engines.get(SCORER)
    energies = None if scorer is None else scorer.run([scorer.score_request(images)])[0]
    for server in servers:
        with server.turn(), server.caller() as caller:
            try:
                for draw, wanted in expected.items():
                    got = np.frombuffer(caller.sampling(draw)(), "<f4")
                    _compare(server, f"{draw.sampler} {draw.steps} of {draw.model}", got, wanted)
                if energies is not None:
                    _compare(server, f"scores of {SCORER}", caller.score(SCORER, images), energies)
            except CallerError as error:
                raise Disagreement(f"{server.peer.title} does not answer: {error}") from error


def _drawn(engine: Engine, draw: Draw) -> npt.NDArray[np.float32]:
    return engine.run([engine.sample_request(draw.sampler, draw.steps, draw.seeds)])[0].ravel()


def _compare(server: Running, what: str, got: npt.NDArray[np.floating], wanted: npt.NDArray[np.floating]) -> None:
    if got.shape != wanted.shape:
        raise Disagreement(f"{server.peer.title}: {what}: {got.size} values, the engine gives {wanted.size}")
    error = float(np.max(np.abs(got - wanted) / np.maximum(1.0, np.abs(wanted))))
    if not error <= TOLERANCE:
        raise Disagreement(f"{server.peer.title}: {what}: off by {error:.2g}, at most {TOLERANCE:g} is allowed")
