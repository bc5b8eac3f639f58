"""`python -m bench load` as its users call it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from bench.__main__ import main
from tests.bench.fake_server import FakeServer


def test_the_command_leaves_a_document_and_a_picture(
    fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints a table and writes figures with their surroundings."""
    arguments = ["load", "--address", fake.address, "--mix", "ddim:1=1,score=1", "--rate", "50", "--duration", "0.5"]
    assert main([*arguments, "--warmup", "0.1", "--output", str(tmp_path)]) == 0
    document = json.loads((tmp_path / "load.json").read_text())
    assert document["plan"]["arrivals"] == {"law": "poisson", "rate": 50}
    assert {kind["name"] for kind in document["kinds"]} == {"ddim:1", "score"}
    assert set(document["kinds"][0]["latency"]) == {"p50", "p90", "p99", "p99.9", "max"}
    surroundings = document["environment"]
    assert {"cpu", "cores", "load_average", "packages", "commit", "time"} <= set(surroundings)
    assert surroundings["packages"]["numpy"]
    with Image.open(tmp_path / "load.png") as picture:
        assert min(picture.size) > 500
    assert "ddim:1" in capsys.readouterr().err


def test_the_command_fails_where_nothing_was_answered(fake: FakeServer, tmp_path: Path) -> None:
    """Exit code 1 tells a script that there are no figures."""
    where = ["--rate", "50", "--duration", "0.2", "--warmup", "0", "--output", str(tmp_path)]
    assert main(["load", "--address", fake.address, "--mix", "ddim:1:model=full=1", *where]) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--mix", "ddim"], "'ddim' has no weight"),
        (["--rate", "-1"], "rate: must be positive"),
        (["--arrivals", "burst:none"], "arrivals: must be poisson, or burst:SIZE"),
        (["--arrivals", "burst:0"], "arrivals: a burst must be of at least 1"),
        (["--clients", "0"], "clients: must be within"),
        (["--think", "1"], "think: is of a closed loop"),
        (["--image-shape", "1x0x8"], "image-shape: must be"),
        (["--protocol", "http"], "address: must be a URL"),
        (["--mix", "langevin:5=1"], "'langevin:5': no model of the server serves it"),
    ],
)
def test_wrong_options_are_named(
    fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    """Exit code 2 tells a script that the arguments were wrong, and the message which."""
    assert main(["load", "--address", fake.address, "--output", str(tmp_path), *options]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
