"""The callers of a comparison against a real server: both protocols give the same samples and energies."""

from __future__ import annotations

import numpy as np
import pytest

from bench.compare.caller import CallerError, Draw, connect
from tests.running import RunningServer


def test_both_protocols_answer_the_same(server: RunningServer):
    """What is compared does not depend on the face of the server that is asked."""
    images = np.random.default_rng(0).uniform(-1.0, 1.0, (3, 1, 8, 8)).astype(np.float32)
    with connect("native", server.address) as native, connect("oip", server.address) as oip:
        draw = Draw("digits-ddpm", "ddim", 2, (7,))
        assert native.sampling(draw)() == oip.sampling(draw)()
        energies = native.score("digits-vdrme", images)
        assert energies.shape == (3,)
        assert np.allclose(energies, oip.score("digits-vdrme", images), rtol=1e-6)


@pytest.mark.parametrize("protocol", ["native", "oip"])
def test_a_refused_call_says_why(server: RunningServer, protocol: str):
    """An unknown model ends in an error with the server's words, for samples and for scores."""
    images = np.zeros((1, 1, 8, 8), dtype=np.float32)
    with connect(protocol, server.address) as caller:
        with pytest.raises(CallerError, match="no-such-model"):
            caller.sampling(Draw("no-such-model", "ddim", 1, (0,)))()
        with pytest.raises(CallerError, match="no-such-model"):
            caller.score("no-such-model", images)
