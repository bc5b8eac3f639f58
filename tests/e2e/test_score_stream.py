"""Scoring in bulk over one stream."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from models.data import load_digits_split
from protos import fewstep_pb2 as pb
from server.client import FewstepClient, FewstepError

from ..running import RunningServer

MODEL = "digits-vdrme"


@pytest.fixture(scope="module")
def client(server: RunningServer):
    with FewstepClient(server.address) as client:
        yield client


def test_a_stream_gives_what_single_calls_give_in_order(client: FewstepClient):
    """100 batches of different sizes, more than run at a time, come back in their order with their energies."""
    images = load_digits_split().test.images
    batches = [images[3 * i : 3 * i + 1 + i % 3] for i in range(100)]
    streamed = [scores.default.energy for scores in client.score_stream(MODEL, batches, seed=1)]
    assert [len(energy) for energy in streamed] == [len(batch) for batch in batches]
    alone = client.score(MODEL, images, seed=1).default.energy
    assert np.allclose(np.concatenate(streamed), np.concatenate([alone[3 * i : 3 * i + 1 + i % 3] for i in range(100)]))


def test_a_stream_is_not_refused_for_its_own_requests(client: FewstepClient):
    """Twelve times as many rows as one request may have, which are more than may wait, as fast as they can be sent."""
    images = np.tile(load_digits_split().test.images[:128], (8, 1, 1, 1))
    streamed = [scores.default.energy for scores in client.score_stream(MODEL, [images] * 12, seed=1)]
    assert [len(energy) for energy in streamed] == [1024] * 12
    alone = client.score(MODEL, images[:128], seed=1).default.energy
    assert all(np.allclose(energy[:128], alone) for energy in streamed)


def test_a_bad_request_gets_its_error_and_the_stream_goes_on(server: RunningServer):
    """The answers before and after a request that names no model are scores."""
    good = load_digits_split().test.images[:2]
    images = pb.Images(shape=good.shape, raw=good.astype("<f4").tobytes())
    requests = [pb.ScoreRequest(model=name, images=images) for name in (MODEL, "nothing", MODEL)]
    stub = server.channel.stream_stream(
        "/fewstep.v1.Scorer/ScoreStream",
        request_serializer=pb.ScoreRequest.SerializeToString,
        response_deserializer=pb.ScoreEvent.FromString,
    )
    events = list(stub(iter(requests), timeout=30))
    assert [event.WhichOneof("event") for event in events] == ["result", "error", "result"]
    assert events[1].error.code == grpc.StatusCode.NOT_FOUND.value[0]
    assert "nothing" in events[1].error.message
    assert list(events[0].result.scores[0].energy) == pytest.approx(list(events[2].result.scores[0].energy))


def test_the_client_names_what_is_wrong(client: FewstepClient):
    """A refused batch raises with its status; images that are none raise where they came from."""
    with pytest.raises(FewstepError, match=r"images\.raw") as caught:
        list(client.score_stream(MODEL, [np.full((1, 1, 8, 8), 5.0)]))
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(ValueError, match="floating point"):
        list(client.score_stream(MODEL, [np.zeros((1, 1, 8, 8), dtype=int)]))


def test_a_stream_that_is_left_leaves_nothing_behind(server: RunningServer, client: FewstepClient):
    """Closing the iterator early cancels what runs, and the next call works."""

    def endless():
        while True:
            yield load_digits_split().test.images[:50]

    scores = client.score_stream(MODEL, endless())
    next(scores)
    scores.close()
    assert len(client.score(MODEL, load_digits_split().test.images[:1]).default.energy) == 1
