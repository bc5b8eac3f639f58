"""`python -m bench load` as its users call it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from bench.cli import main
from tests.bench.fake_server import FakeServer

SHORT = ["--duration", "0.5", "--warmup", "0.1"]


def said_by(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_the_command_leaves_a_document_a_report_and_a_picture(
    fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints tables and writes figures with their surroundings."""
    arguments = ["load", "--address", fake.address, "--mix", "ddim:1=1,score=1", "--rate", "50", *SHORT]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    document = json.loads((tmp_path / "load.json").read_text())
    assert document["plan"]["arrivals"] == {"law": "poisson", "rate": 50}
    assert {kind["name"] for kind in document["kinds"]} == {"ddim:1", "score"}
    assert set(document["kinds"][0]["latency"]) == {"p50", "p90", "p95", "p99", "p99.9", "max"}
    surroundings = document["environment"]
    assert {"cpu", "cores", "load_average", "packages", "commit", "time"} <= set(surroundings)
    assert surroundings["packages"]["numpy"]
    with Image.open(tmp_path / "load.png") as picture:
        assert min(picture.size) > 500
    report = (tmp_path / "load.md").read_text()
    assert report.startswith("# Load: Poisson arrivals, 50 requests/s\n")
    p99 = next(kind for kind in document["kinds"] if kind["name"] == "ddim:1")["latency"]["p99"]
    (row,) = [line for line in report.splitlines() if line.startswith("| `ddim:1` | toy |")]
    assert f" {1e3 * p99:.1f} " in row
    said = said_by(capsys)
    assert "ddim:1" in said
    assert "errors: none" in said


def test_a_closed_loop_says_what_its_latencies_are(
    fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Service times, of so many clients, in the report and on the terminal."""
    where = ["--address", fake.address, "--output", str(tmp_path)]
    assert main(["load", *where, "--mix", "ddim:1=1", "--clients", "2", "--think", "0.01", *SHORT]) == 0
    report = (tmp_path / "load.md").read_text()
    assert report.startswith("# Load: closed loop, 2 clients that think for 0.01 s\n")
    assert "Latencies are service times" in report
    assert "from the actual sending" not in report
    assert "Latencies are service times" in said_by(capsys)


def test_rates_and_search_draw_latency_against_rate(
    fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each rate has its line and its entry; what a search finds is shown in detail too."""
    where = ["load", "--address", fake.address, "--mix", "ddim:1=1", *SHORT, "--output", str(tmp_path)]
    assert main([*where, "--rates", "80,20", "--goal", "p50<10s"]) == 0
    assert "errors 0 %, meets the goals" in said_by(capsys)
    document = json.loads((tmp_path / "rates.json").read_text())
    assert [probe["rate"] for probe in document["probes"]] == [20, 80]
    assert document["goals"] == ["p50<10s", "errors<1%"]
    assert (tmp_path / "rates.png").exists()
    assert not (tmp_path / "load.png").exists()
    assert main([*where, "--rates", "20"]) == 0
    assert "meets the goals" not in said_by(capsys)
    # Sixteen requests at a time, 0.1 s each, are 160 a second; within half a second a goal of 0.3 s is soon missed.
    fake.sample_seconds = 0.1
    assert main([*where, "--search", "--goal", "p99<300ms", "--rate", "40", "--precision", "0.5"]) == 0
    document = json.loads((tmp_path / "rates.json").read_text())
    assert document["bounded"] is True
    met = [probe["rate"] for probe in document["probes"] if not probe["missed"]]
    assert document["found"] == max(met) < min(p["rate"] for p in document["probes"] if p["missed"])
    assert json.loads((tmp_path / "load.json").read_text())["plan"]["arrivals"]["rate"] == document["found"]
    report = (tmp_path / "rates.md").read_text()
    assert "requests/s is the highest rate that meets p99<300ms" in report
    again = "meets the goals" if document["missed_again"] == [] else f"misses: {', '.join(document['missed_again'])}"
    assert f"Once more at the rate that was found ([details](load.md)), the load {again}." in report
    assert "misses: p99" in said_by(capsys)
    assert main([*where, "--search", "--goal", "p99<1ms", "--rate", "40"]) == 1
    assert "no rate down to 20 requests/s meets p99<1ms" in said_by(capsys)


def test_a_saved_trace_is_replayed(fake: FakeServer, tmp_path: Path) -> None:
    """The same requests come again, at the rate that is asked for."""
    where = ["load", "--address", fake.address, "--output", str(tmp_path)]
    trace = str(tmp_path / "trace.jsonl")
    mix = ["--mix", "ddim:1=1,score=1", "--arrivals", "burst:3", "--rate", "60"]
    assert main([*where, *mix, *SHORT, "--save-trace", trace]) == 0
    first = sorted(request.seed for request in fake.requests)
    fake.requests.clear()
    assert main([*where, "--trace", trace, "--rate", "120"]) == 0
    assert sorted(request.seed for request in fake.requests) == first
    plan = json.loads((tmp_path / "load.json").read_text())["plan"]
    assert plan["arrivals"] == {"law": "replay", "file": trace, "rate": 120}
    assert plan["warmup"] == 0


def test_the_command_fails_where_nothing_was_answered(fake: FakeServer, tmp_path: Path) -> None:
    """Exit code 1 tells a script that there are no figures."""
    where = ["--rate", "50", "--duration", "0.2", "--warmup", "0", "--output", str(tmp_path)]
    assert main(["load", "--address", fake.address, "--mix", "ddim:1:model=full=1", *where]) == 1
    assert (
        main(["load", "--address", fake.address, "--metrics-address", "127.0.0.1:1", *where, "--mix", "ddim:1=1"]) == 1
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--mix", "ddim"], "'ddim' has no weight"),
        (["--mix", "langevin:5=1"], "'langevin:5': no model of the server serves it"),
        (["--rate", "-1"], "rate: must be positive"),
        (["--duration", "0"], "duration: must be positive"),
        (["--arrivals", "burst:none"], "arrivals: must be poisson, or burst:SIZE"),
        (["--arrivals", "burst:0"], "arrivals: a burst must be of at least 1"),
        (["--arrivals", ""], "arrivals: must be poisson, or burst:SIZE"),
        (["--clients", "0"], "clients: must be within"),
        (["--clients", "2", "--rate", "5"], "rate: is of an open loop"),
        (["--clients", "2", "--rates", "5"], "rates: do not go with --clients"),
        (["--clients", "2", "--save-trace", "x"], "save-trace: in a closed loop"),
        (["--think", "1"], "think: is of a closed loop"),
        (["--trace", "none.jsonl"], "none.jsonl: No such file"),
        (["--trace", "none.jsonl", "--mix", "ddim:1=1"], "mix: does not go with --trace"),
        (["--trace", "none.jsonl", "--clients", "1"], "trace: is of an open loop"),
        (["--rates", "1,x"], "rates: must be numbers as in 10,20,40, got 'x'"),
        (["--rates", "1,0"], "rate: must be positive"),
        (["--rates", "1", "--search", "--goal", "p99<1s"], "search: does not go with --rates"),
        (["--search"], "search: needs a --goal"),
        (["--search", "--goal", "p99"], "goal: must be as p99<50ms"),
        (["--search", "--goal", "p99<1s", "--precision", "0"], "precision: must be within"),
        (["--goal", "p99<1s"], "goal: is of --search and --rates"),
        (["--image-shape", "1x0x8"], "image-shape: must be"),
        (["--protocol", "http"], "address: must be a URL"),
    ],
)
def test_wrong_options_are_named(
    fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    """Exit code 2 tells a script that the arguments were wrong, and the message which."""
    assert main(["load", "--address", fake.address, "--output", str(tmp_path), *options]) == 2
    assert said in said_by(capsys)
    assert fake.requests == []
