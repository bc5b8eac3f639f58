"""Client and load generator against the real server with the shipped models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from bench.board import GRID, REACH, ask_board
from bench.load import DEFAULT_MIX, LoadPlan, run_load
from bench.schedule import Poisson
from bench.targets import NativeTarget
from models.data import load_digits_split
from models.metrics.checkerboard import board_quality
from server.client import FewstepClient, FewstepError, Preview, Samples
from server.client.cli import main
from tests.running import RunningServer


@pytest.fixture
def client(server: RunningServer) -> Iterator[FewstepClient]:
    with FewstepClient(server.address, timeout=30) as client:
        yield client


def test_samples_repeat_by_their_seed_in_every_encoding(client: FewstepClient) -> None:
    """The seed that comes back draws the same images again; as PNG they are the same to 8 bits."""
    first = client.sample("digits-ddpm", count=3, steps=4, sampler="iddim", m=0.6, labels=[1, 2, 3])
    again = client.sample("digits-ddpm", count=3, steps=4, sampler="iddim", m=0.6, labels=[1, 2, 3], seed=first.seed)
    rounded = client.sample(
        "digits-ddpm", count=3, steps=4, sampler="iddim", m=0.6, labels=[1, 2, 3], seed=first.seed, encoding="png"
    )
    np.testing.assert_allclose(again.images, first.images, atol=1e-5)
    np.testing.assert_allclose(rounded.images, first.images, atol=1 / 255 + 1e-5)
    assert (first.nfe, first.sampler, first.images.shape) == (4, "iddim", (3, 1, 8, 8))
    assert 0 < first.timing.compute_seconds <= first.timing.total_seconds


def test_a_stream_ends_with_what_a_plain_call_returns(client: FewstepClient) -> None:
    """One preview a step, in order, and then the images of the same request."""
    *previews, result = client.sample_stream("digits-vdrme", steps=4, seed=5)
    assert [event.step for event in previews if isinstance(event, Preview)] == [1, 2, 3, 4]
    assert isinstance(result, Samples)
    np.testing.assert_allclose(result.images, client.sample("digits-vdrme", steps=4, seed=5).images, atol=1e-5)


def test_scores_of_digits_and_noise(client: FewstepClient) -> None:
    """Noise scores above digits at the default scale, and all scales come when asked for."""
    digits = load_digits_split().test.images[:40]
    noise = np.random.default_rng(0).uniform(-1, 1, digits.shape)
    scores = client.score("digits-vdrme", np.concatenate([digits, noise]), scales="all", seed=1)
    assert tuple(scores.scales) == client.describe("digits-vdrme").scales
    energy = scores.default.energy
    assert np.median(energy[40:]) > np.median(energy[:40])


def test_the_checkerboard_is_drawn_and_scored(client: FewstepClient) -> None:
    """Nearly all points lie on the board, and the middle of a filled cell has a lower energy than one beside it."""
    found = ask_board(client, seed=3)
    assert found.samples.shape == found.data.shape == (2000, 2)
    assert board_quality(found.samples).support > 0.9
    assert found.nfe == 5
    place = {value: int((value + REACH) / (2 * REACH) * GRID) for value in (-1.5, -0.5)}
    assert found.energy[place[-1.5], place[-1.5]] < found.energy[place[-1.5], place[-0.5]] - 1.0  # rows go upwards
    assert found.energy[place[-0.5], place[-0.5]] < found.energy[place[-0.5], place[-1.5]] - 1.0


def test_refusals_name_the_field(client: FewstepClient) -> None:
    """The server's table of codes and its words reach the caller of the class."""
    for options, code, word in (
        ({"steps": 0}, grpc.StatusCode.INVALID_ARGUMENT, "steps"),
        ({"m": 2.0, "sampler": "iddim"}, grpc.StatusCode.INVALID_ARGUMENT, "m"),
        ({"count": 10**9}, grpc.StatusCode.INVALID_ARGUMENT, "count"),
        ({"labels": 11}, grpc.StatusCode.NOT_FOUND, "labels"),
    ):
        with pytest.raises(FewstepError) as caught:
            client.sample("digits-ddpm", **options)  # type: ignore[arg-type]
        assert caught.value.code is code
        assert word in caught.value.message


def test_the_command_line_on_the_real_server(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures drawn to an array can be scored from it, and models and status are listed."""
    at = ["--address", server.address, "--json"]
    array = str(tmp_path / "samples.npy")
    assert main([*at, "sample", "digits-ddpm", "--steps", "2", "--count", "4", "--stream", "--output", array]) == 0
    assert json.loads(capsys.readouterr().out)["shape"] == [4, 1, 8, 8]
    assert main([*at, "score", "digits-vdrme", array]) == 0
    assert len(json.loads(capsys.readouterr().out)["images"]) == 4
    assert main([*at, "models"]) == 0
    assert {model["name"] for model in json.loads(capsys.readouterr().out)} >= {"digits-ddpm", "digits-vdrme"}
    assert main([*at, "status"]) == 0
    assert json.loads(capsys.readouterr().out)["ready"] is True


def test_the_default_load(server: RunningServer) -> None:
    """Every kind of the default mix is answered without errors, and the batches come from the metrics page."""
    plan = LoadPlan(DEFAULT_MIX, Poisson(20), duration=1.5, warmup=0.5)
    result, _ = run_load(plan, NativeTarget(server.address), f"127.0.0.1:{server.app.metrics_port}")
    assert result.errors == {}
    assert all(kind.ok == kind.sent > 0 for kind in result.kinds)
    assert {"digits-ddpm/denoiser"} < set(result.batches)
    assert all(ran.batches > 0 and ran.mean_rows >= 1 for ran in result.batches.values())
    ddim = result.kinds[0]
    assert 0 < ddim.stages["queue"] + ddim.stages["network"] < ddim.latency["max"]
    assert all(seconds > 0 for seconds in result.total.stages.values())
