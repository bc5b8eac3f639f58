"""The client's command line, against a server with the real API and known answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from server.client.cli import main
from server.client.images import grid, to_pixels
from tests.bench.fake_server import SHAPE, FakeServer, images_for

from .pictures import save

ROOT = Path(__file__).parents[3]


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
        (["--timeout", "nan", "status"], "timeout: must be a number of seconds, 0 or more, got nan"),
        (["--timeout", "-1", "status"], "timeout: must be a number of seconds, 0 or more, got -1.0"),
        (["--timeout=-inf", "status"], "timeout: must be a number of seconds, 0 or more, got -inf"),
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


@pytest.mark.parametrize("timeout", ["inf", "1e30"])
def test_cli_waits_for_ever_where_it_is_told_to(fake: FakeServer, timeout: str) -> None:
    """A timeout beyond what gRPC can count is none, and not one that is over at once."""
    assert main(["--address", fake.address, "--timeout", timeout, "status"]) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--scale", "100000"], "scale: a grid of 16 images at scale 100000 would have 2400020x1600020 pixels"),
        (["--scale", "0"], "scale: must be at least 1, got 0"),
        (["--columns", "-2"], "columns: must be at least 1, got -2"),
        (["--count", "1000000"], "images: a grid of 1000000 images at scale 16 would have"),
    ],
)
def test_cli_a_grid_that_cannot_be_made_is_refused_before_the_request(
    fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    """One line, exit code 2, nothing drawn and nothing written; for refinements as for samples."""
    path = tmp_path / "out.png"
    np.save(tmp_path / "in.npy", np.zeros((16, *SHAPE), np.float32))
    commands = [["sample", "toy"]]
    if "--count" not in options:
        commands.append(["refine", "toy", str(tmp_path / "in.npy")])
    for command in commands:
        assert main(["--address", fake.address, *command, *options, "--output", str(path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"BAD_INPUT: {said}")
    assert fake.requests == []
    assert not path.exists()


def test_cli_leaves_a_count_of_none_to_the_server(fake: FakeServer, tmp_path: Path) -> None:
    """What a count may be is the server's to say, so that such a request is sent."""
    main(["--address", fake.address, "sample", "toy", "--count", "0", "--output", str(tmp_path / "out.png")])
    assert [request.count for request in fake.requests] == [0]


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
