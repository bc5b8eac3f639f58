"""The client class and its command line, against a server with the real API and known answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image

from protos import fewstep_pb2 as pb
from server.client import FewstepClient, FewstepError, Preview, Samples
from server.client.cli import main
from server.client.images import GAP, GAP_COLOUR, ImageFileError, from_pixels, grid, read_images, to_pixels
from tests.bench.fake_server import SHAPE, FakeServer, fake_server, images_for

ROOT = Path(__file__).parents[2]
MOST_MEMORY = 120 * 2**20


@pytest.fixture(scope="module")
def running() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake


@pytest.fixture
def fake(running: FakeServer) -> FakeServer:
    running.requests.clear()
    running.calibrated = True
    running.sample_seconds = 0.0
    running.stream_cancelled.clear()
    return running


@pytest.fixture
def client(fake: FakeServer) -> Iterator[FewstepClient]:
    with FewstepClient(fake.address, timeout=10) as client:
        yield client


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


# Pictures


def test_grid_places_every_pixel() -> None:
    """Images stand in rows, enlarged by whole pixels, each in a grey frame; empty places are grey."""
    pixels = np.arange(3 * 1 * 2 * 2, dtype=np.uint8).reshape(3, 1, 2, 2)
    page = grid(pixels, columns=2, scale=3)
    assert page.shape == (2 * (6 + GAP) + GAP, 2 * (6 + GAP) + GAP)
    expected = np.full(page.shape, GAP_COLOUR, np.uint8)
    for index, (top, left) in enumerate([(GAP, GAP), (GAP, 6 + 2 * GAP), (6 + 2 * GAP, GAP)]):
        expected[top : top + 6, left : left + 6] = np.kron(pixels[index, 0], np.ones((3, 3), np.uint8))
    np.testing.assert_array_equal(page, expected)


def test_grid_in_colour_enlarges_small_images_until_they_can_be_seen() -> None:
    """By default 8x8 pixels become 64x64, three channels stay three, and 9 images make 3 columns."""
    pixels = np.zeros((9, 3, 8, 8), np.uint8)
    pixels[4, 2] = 200
    page = grid(pixels)
    assert page.shape == (3 * 68 + 4, 3 * 68 + 4, 3)
    assert (page[72:136, 72:136] == (0, 0, 200)).all()


@pytest.mark.parametrize("arguments", [{"columns": 0}, {"scale": -1}])
def test_grid_refuses_a_size_of_nothing(arguments: dict[str, int]) -> None:
    """Zero columns and negative scales are refused by name."""
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}: must be at least 1"):
        grid(np.zeros((1, 1, 2, 2), np.uint8), **arguments)


def test_pixels_and_values_map_both_ways() -> None:
    """Every 8-bit pixel survives the way to float and back, and what is out of range is clipped."""
    pixels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_pixels(from_pixels(pixels, -1, 1), -1, 1), pixels)
    np.testing.assert_array_equal(to_pixels(np.array([-9.0, 9.0]), -1, 1), [0, 255])


def save(path: Path, mode: str, size: tuple[int, int] = (6, 4), colour: object = None) -> Path:
    Image.new(mode, size, colour).save(path)  # type: ignore[arg-type]
    return path


def test_pictures_are_converted_to_the_models_channels(tmp_path: Path) -> None:
    """A colour picture becomes grey for a grey model and a grey one becomes colour for a colour model."""
    colour = save(tmp_path / "colour.png", "RGB", colour=(255, 255, 255))
    grey = save(tmp_path / "grey.png", "L", colour=0)
    opaque = save(tmp_path / "opaque.png", "RGBA", colour=(0, 0, 0, 255))
    np.testing.assert_array_equal(read_images(colour, SHAPE, -1, 1), np.ones((1, *SHAPE)))
    np.testing.assert_array_equal(read_images(grey, (3, 4, 6), -1, 1), -np.ones((1, 3, 4, 6)))
    np.testing.assert_array_equal(read_images(opaque, SHAPE, -1, 1), -np.ones((1, *SHAPE)))


def test_pictures_that_do_not_fit_are_refused_with_the_reason(tmp_path: Path) -> None:
    """The message names the file, what it is and what the model takes."""
    (tmp_path / "text.png").write_text("no picture")
    cases = {
        save(tmp_path / "large.png", "L", (8, 8)): "must be 6x4 pixels, got 8x8",
        save(tmp_path / "deep.png", "I;16"): "must have 8 bits a channel",
        save(tmp_path / "glass.png", "RGBA", colour=(0, 0, 0, 7)): "transparent",
        tmp_path / "text.png": "no picture that can be read",
        tmp_path / "absent.png": "No such file",
    }
    for path, said in cases.items():
        with pytest.raises(ImageFileError, match=f"{path.name}: .*{said}"):
            read_images(path, SHAPE, -1, 1)


def test_arrays_that_do_not_fit_are_refused_and_never_unpickled(tmp_path: Path) -> None:
    """A .npy file must hold floats of the model's shape; an object array is not opened."""
    arrays = {
        "objects.npy": (np.array([print], dtype=object), "no plain NumPy array"),
        "bytes.npy": (np.zeros(SHAPE, np.uint8), "floating-point"),
        "shape.npy": (np.zeros((2, 1, 4, 4)), r"shape \(count, 1, 4, 6\), got \(2, 1, 4, 4\)"),
    }
    for name, (array, said) in arrays.items():
        np.save(tmp_path / name, array, allow_pickle=True)
        with pytest.raises(ImageFileError, match=f"{name}: .*{said}"):
            read_images(tmp_path / name, SHAPE, -1, 1)


# Command line


def test_cli_sample_writes_the_grid(fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The picture on disk is the grid of the images that came, and the table names seed and sampler."""
    path = tmp_path / "new" / "samples.png"
    arguments = ["--address", fake.address, "sample", "toy", "--count", "4", "--steps", "5", "--seed", "11"]
    assert main([*arguments, "--sampler", "iddim", "--m", "0.2,0.6", "--output", str(path)]) == 0
    (request,) = fake.requests
    assert list(request.m) == [0.2, 0.6]
    with Image.open(path) as picture:
        written = np.asarray(picture)
    np.testing.assert_array_equal(written, grid(to_pixels(images_for(4), -1, 1)))
    shown = capsys.readouterr()
    assert "iddim" in shown.out
    assert "11" in shown.out
    assert str(path) in shown.err.replace("\n", "")


def test_cli_json_is_all_there_is_on_standard_output(
    fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --json, before or after the command, standard output parses and tells what was drawn."""
    path = tmp_path / "samples.npy"
    command = ["sample", "toy", "--count", "2", "--output", str(path), "--stream"]
    for arguments in (["--json", *command], [*command, "--json"]):
        assert main(["--address", fake.address, *arguments]) == 0
        document = json.loads(capsys.readouterr().out)
        assert (document["count"], document["shape"], document["seed"]) == (2, [2, *SHAPE], 99)
        assert document["timing"]["mean_batch_rows"] == 2.5
    np.testing.assert_array_equal(np.load(path), images_for(2))


def test_cli_scores_files_in_their_order(fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures and arrays are scored in one request and named one by one."""
    picture = save(tmp_path / "white.png", "L", colour=255)
    np.save(tmp_path / "two.npy", np.zeros((2, *SHAPE), np.float32))
    files = [str(picture), str(tmp_path / "two.npy")]
    assert main(["--address", fake.address, "--json", "score", "toy", *files, "--scales", "clean,noisy"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [Path(name).name for name in document["images"]] == ["white.png", "two.npy[0]", "two.npy[1]"]
    assert document["scales"]["noisy"]["energy"] == [1.0, 0.0, 0.0]
    assert document["scales"]["clean"]["out_of_distribution"] == [True, False, False]
    assert main(["--address", fake.address, "score", "toy", str(picture)]) == 0
    assert "out of distribution" in capsys.readouterr().out


def test_cli_models_and_status(fake: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Both come as tables and as JSON; a description in JSON holds the manifest."""
    for command, word in ((["models"], "iddim"), (["models", "toy"], "1 to 100"), (["status"], "fake")):
        assert main(["--address", fake.address, *command]) == 0
        assert word in capsys.readouterr().out
    assert main(["--address", fake.address, "--json", "models", "toy"]) == 0
    assert json.loads(capsys.readouterr().out)["manifest"] == {"card": {"name": "toy"}}


def test_cli_server_errors_exit_with_1(fake: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """A refusal is one line on standard error, the same in the JSON document, and exit code 1."""
    assert main(["--address", fake.address, "sample", "nothing"]) == 1
    shown = capsys.readouterr()
    assert shown.err == "NOT_FOUND: model: no 'nothing'; there is toy\n"
    assert shown.out == ""
    assert main(["--address", fake.address, "--json", "sample", "nothing"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "NOT_FOUND"
    assert main(["--address", "127.0.0.1:1", "status"]) == 1
    assert capsys.readouterr().err.startswith("UNAVAILABLE: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sample", "toy", "--output", "picture.jpg"], "--output: must end in .png or .npy"),
        (["sample", "toy", "--output", "/dev/null/x.png"], "File exists"),
        (["sample", "toy", "--seed", "-1"], "seed: Value out of range"),
        (["score", "toy", "absent.png"], "absent.png: No such file"),
    ],
)
def test_cli_bad_input_exits_with_2(
    fake: FakeServer, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    """What the caller got wrong is one line that says what, and exit code 2."""
    assert main(["--address", fake.address, *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


@pytest.mark.parametrize("arguments", [[], ["sample"], ["sample", "toy", "--m", "much"], ["paint"]])
def test_cli_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Arguments that cannot be read end with the usage and exit code 2."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_the_module_is_the_command(fake: FakeServer) -> None:
    """`python -m server.client` runs the command line and hands its exit code on."""
    command = [sys.executable, "-m", "server.client", "--address", fake.address, "--json", "status"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["ready"] is True
    command[-2:] = ["sample", "nothing"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60).returncode == 1
