"""The client class, against a server with the real API and known answers."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from protos import fewstep_pb2 as pb
from server.client import FewstepClient, FewstepError, Preview, Samples
from tests.bench.fake_server import SHAPE, FakeServer, images_for

ROOT = Path(__file__).parents[3]
IMAGE = np.zeros(SHAPE, np.float32)
DRAWN: dict[str, Callable[..., Any]] = {
    "sample": lambda client, **timeout: client.sample("toy", **timeout),
    "sample_stream": lambda client, **timeout: list(client.sample_stream("toy", **timeout)),
    "score": lambda client, **timeout: client.score("toy", IMAGE, **timeout),
}
CALLS: dict[str, Callable[..., Any]] = {
    **DRAWN,
    "refine": lambda client, **timeout: client.refine("toy", IMAGE, **timeout),
    "refine_stream": lambda client, **timeout: list(client.refine_stream("toy", IMAGE, **timeout)),
    "score_stream": lambda client, **timeout: list(client.score_stream("toy", [IMAGE], **timeout)),
    "models": lambda client, **timeout: client.models(**timeout),
    "describe": lambda client, **timeout: client.describe("toy", **timeout),
    "status": lambda client, **timeout: client.status(**timeout),
    "wait_until_connected": lambda client, **timeout: client.wait_until_connected(**timeout),
}
MOST_MEMORY = 120 * 2**20


def test_sample_returns_the_images_as_they_were_sent(client: FewstepClient) -> None:
    """Raw images arrive bit for bit, with everything else of the answer."""
    samples = client.sample("toy", count=3, steps=8, sampler="iddim", seed=2**64 - 1)
    np.testing.assert_array_equal(samples.images, images_for(3))
    assert samples.images.dtype == np.float32
    assert samples.images.flags.writeable
    assert (samples.seed, samples.sampler, samples.steps, samples.nfe) == (2**64 - 1, "iddim", 8, 8)
    assert (samples.model, samples.version, samples.png) == ("toy", 3, ())
    assert samples.timing.queue_seconds == 0.001
    assert samples.timing.mean_batch_rows == 2.5


def test_sample_sends_every_option_under_its_own_field(client: FewstepClient, fake: FakeServer) -> None:
    """Each option reaches its field of the request, and one value stands for a list of one."""
    client.sample(
        "toy", count=2, steps=2, sampler="custom", m=0.6, form="accumulator", weights=[[1], [0.25, 0.75]], eta=0.0,
        guidance=0.5, temperature=0.7, step_size=0.1, spacing="linear", labels=1, seed=0, priority=-3, version=3,
    )  # fmt: skip
    expected = pb.SampleRequest(
        model="toy", version=3, count=2, steps=2, sampler="custom", m=[0.6], form="accumulator",
        weights=[pb.Weights(values=[1]), pb.Weights(values=[0.25, 0.75])], eta=0.0, guidance=0.5, temperature=0.7,
        step_size=0.1, spacing="linear", labels=[1], seed=0, priority=-3,
    )  # fmt: skip
    assert fake.requests == [expected]


def test_options_that_are_not_given_stay_unset(client: FewstepClient, fake: FakeServer) -> None:
    """A bare request carries the model's name alone, so the server's defaults hold."""
    client.sample("toy")
    assert fake.requests == [pb.SampleRequest(model="toy")]


def test_png_travels_as_files_and_arrives_in_the_models_range(client: FewstepClient) -> None:
    """With PNG the images are the raw ones rounded to 8 bits, and the files are kept."""
    samples = client.sample("toy", count=2, encoding="png")
    assert samples.images.dtype == np.float32
    np.testing.assert_allclose(samples.images, images_for(2), atol=1 / 255 + 1e-6)
    assert [file[:4] for file in samples.png] == [b"\x89PNG"] * 2


def test_an_unknown_encoding_is_refused_before_it_is_sent(client: FewstepClient, fake: FakeServer) -> None:
    """The message names the field and what is accepted."""
    with pytest.raises(ValueError, match="encoding: must be one of raw, png, got 'jpeg'"):
        client.sample("toy", encoding="jpeg")  # type: ignore[arg-type]
    assert fake.requests == []


def test_stream_gives_a_preview_a_step_and_then_the_samples(client: FewstepClient) -> None:
    """The previews count up to the number of steps; the last event is the result."""
    *previews, result = client.sample_stream("toy", steps=4, count=2)
    assert [(p.step, p.steps) for p in previews if isinstance(p, Preview)] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert isinstance(previews[0], Preview)
    assert previews[0].image.shape == SHAPE
    assert isinstance(result, Samples)
    assert len(result.images) == 2


def test_a_stream_without_a_result_is_an_error(client: FewstepClient) -> None:
    """A server that ends the stream early is not taken for one that answered."""
    with pytest.raises(FewstepError, match="without a result"):
        list(client.sample_stream("mute"))


def test_closing_a_stream_cancels_it_on_the_server(client: FewstepClient, fake: FakeServer) -> None:
    """Leaving the iteration early tells the server that nobody waits any longer."""
    stream = client.sample_stream("toy", steps=100_000)
    next(stream)
    assert not fake.stream_cancelled.is_set()
    stream.close()  # type: ignore[attr-defined]
    assert fake.stream_cancelled.wait(5)


def test_score_gives_arrays_by_scale(client: FewstepClient, fake: FakeServer) -> None:
    """Energies, percentiles, p-values and decisions come one an image, for each scale by its name."""
    images = np.stack([np.full(SHAPE, value, np.float32) for value in (-0.5, 0.75)])
    scores = client.score("toy", images, scales="all", false_alarm_rate=0.1, seed=4)
    assert list(scores.scales) == ["clean", "noisy"]
    np.testing.assert_array_equal(scores["noisy"].energy, [-0.5, 0.75])
    np.testing.assert_array_equal(scores.default.out_of_distribution, [False, True])
    np.testing.assert_array_equal(scores.default.p_value, [0.5, 0.01])
    assert (scores.default.threshold, scores.false_alarm_rate, scores.nfe) == (0.5, 0.1, 1)
    (request,) = fake.requests
    assert (list(request.scales), request.seed) == (["all"], 4)


def test_score_without_calibration_leaves_its_arrays_empty(client: FewstepClient, fake: FakeServer) -> None:
    """Without calibration there are energies, and neither decisions nor a threshold."""
    fake.calibrated = False
    default = client.score("toy", np.zeros(SHAPE, np.float32)).default
    assert len(default.energy) == 1
    assert len(default.p_value) == len(default.percentile) == len(default.out_of_distribution) == 0
    assert default.threshold is None


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros(SHAPE, np.uint8), "floating point, in the model's value range, got uint8"),
        (np.zeros((4, 6), np.float32), r"must be \(count, channels, height, width\), got shape \(4, 6\)"),
    ],
)
def test_score_refuses_what_would_be_misread(client: FewstepClient, images: np.ndarray, said: str) -> None:
    """8-bit pixels and flat arrays are refused by name instead of being scored as something else."""
    with pytest.raises(ValueError, match=f"images: .*{said}"):
        client.score("toy", images)


def test_models_describe_and_status(client: FewstepClient) -> None:
    """The model list, a description and the status come as plain values."""
    (summary,) = client.models()
    assert (summary.name, summary.version, summary.samplers, summary.scores) == ("toy", 3, ("ddim", "iddim"), True)
    described = client.describe("toy")
    assert described.summary == summary
    assert (described.image_shape, described.low, described.high) == (SHAPE, -1.0, 1.0)
    assert described.accepted_steps == tuple(range(1, 101))
    status = client.status()
    assert (status.engine, status.ready, status.requests_total) == ("fake", True, 7)


def test_errors_carry_the_code_and_the_servers_message(client: FewstepClient) -> None:
    """A refusal becomes one exception with the status and the server's own words."""
    with pytest.raises(FewstepError) as caught:
        client.sample("nothing")
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    assert caught.value.message == "model: no 'nothing'; there is toy"
    assert str(caught.value) == "NOT_FOUND: model: no 'nothing'; there is toy"
    assert caught.value.retry_after is None


def test_a_full_queue_says_when_to_come_back(client: FewstepClient) -> None:
    """RESOURCE_EXHAUSTED carries the delay that the server asks for, for single calls and streams."""
    for call in (lambda: client.sample("full"), lambda: list(client.sample_stream("full"))):
        with pytest.raises(FewstepError) as caught:
            call()
        assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.retry_after == pytest.approx(1.5)


def test_a_call_that_takes_too_long_is_a_deadline_error(client: FewstepClient, fake: FakeServer) -> None:
    """The timeout of one call goes before the client's."""
    fake.sample_seconds = 0.5
    with pytest.raises(FewstepError) as caught:
        client.sample("toy", timeout=0.05)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("call", DRAWN.values(), ids=DRAWN)
def test_no_timeout_is_the_clients_own(fake: FakeServer, call: Callable[..., Any]) -> None:
    """None and none at all mean the same to every call."""
    fake.sample_seconds = 0.5
    with FewstepClient(fake.address, timeout=0.05) as client:
        for timeout in ({}, {"timeout": None}):
            with pytest.raises(FewstepError) as caught:
                call(client, **timeout)
            assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("timeout", [math.inf, 1e30, 10**400, np.float32(np.inf)], ids=repr)
@pytest.mark.parametrize("call", DRAWN.values(), ids=DRAWN)
def test_an_endless_timeout_is_no_deadline(fake: FakeServer, call: Callable[..., Any], timeout: float) -> None:
    """More than gRPC can count does not overflow into the past; of one call it goes before the client's."""
    fake.sample_seconds = 0.1
    with FewstepClient(fake.address, timeout=0.02) as client:
        call(client, timeout=timeout)
    with FewstepClient(fake.address, timeout=timeout) as client:
        client.wait_until_connected(timeout)
        call(client)


@pytest.mark.parametrize("timeout", [math.nan, -1, -math.inf, "5", 1j], ids=repr)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_timeout_that_is_none_is_refused(
    client: FewstepClient, fake: FakeServer, call: Callable[..., Any], timeout: Any
) -> None:
    """Every call names it and sends nothing."""
    with pytest.raises(ValueError, match=r"^timeout: must be a number of seconds, 0 or more, got "):
        call(client, timeout=timeout)
    assert fake.requests == []
    with pytest.raises(ValueError, match=r"^timeout: "):
        FewstepClient(fake.address, timeout=timeout)


def test_a_server_that_is_not_there_is_unavailable() -> None:
    """Nobody at the address is an ordinary error, at once for a call and after its time for waiting."""
    with FewstepClient("127.0.0.1:1") as client:
        for call in (client.status, lambda: client.wait_until_connected(0.05)):
            with pytest.raises(FewstepError) as caught:
                call()
            assert caught.value.code is grpc.StatusCode.UNAVAILABLE


def test_an_answer_of_the_wrong_length_is_not_returned(client: FewstepClient) -> None:
    """Images that do not fill their shape are an error, not a guess."""
    with pytest.raises(FewstepError, match="DATA_LOSS: the server sent 95 bytes"):
        client.sample("garbled")


def test_the_client_is_light(fake: FakeServer, tmp_path: Path) -> None:
    """A process that asks for pictures loads neither torch, nor an engine, nor the models, and stays below 120 MiB."""
    script = (
        "import sys\n"
        "from server.client.cli import main\n"
        f"code = main(['--address', '{fake.address}', 'sample', 'toy', '--output', sys.argv[1]])\n"
        "banned = {'torch', 'onnxruntime', 'matplotlib', 'scipy', 'models', 'kernels', 'export'}\n"
        "peak = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(code, sorted(banned & set(sys.modules)), int(peak) * 1024)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "samples.png")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    code, banned, memory = done.stdout.strip().splitlines()[-1].split(" ")
    assert banned == "[]"
    assert int(memory) <= MOST_MEMORY
    assert code == "0"
