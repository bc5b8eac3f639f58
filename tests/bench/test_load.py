"""The load generator, from the outside: a server with known behaviour, and what is reported of it."""

from __future__ import annotations

import http.server
import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from bench.__main__ import main
from bench.load import LoadError, LoadPlan, batches_between, read_batches, run_load, summarise
from bench.mix import parse_mix
from bench.sender import NOT_SENT, Outcome
from tests.bench.fake_server import FakeServer, fake_server


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake


def test_a_stall_is_charged_to_all_that_were_due_meanwhile(fake: FakeServer) -> None:
    """A server that answers nothing for half a second shows it in the latencies of the requests scheduled then.

    A closed loop would send one request, wait, and report a single slow one out of a hundred.
    """
    fake.stall = (0.5, 1.0)
    result, outcomes = run_load(LoadPlan("ddim:1=1", rate=100, duration=1.5, warmup=0), fake.address)
    (kind,) = result.kinds
    assert kind.ok == kind.sent == len(outcomes)
    due = [outcome for outcome in outcomes if 0.55 < outcome.scheduled < 0.95]
    assert len(due) > 20
    for outcome in due:
        assert outcome.latency > 1.0 - outcome.scheduled - 0.05
    assert 0.4 < kind.latency["p99"] < 0.8
    assert kind.latency["p50"] < 0.2


def test_every_scheduled_request_is_sent_once_and_the_warm_up_is_not_counted(fake: FakeServer) -> None:
    """Kinds, options and seeds arrive as scheduled; figures are those of the requests after the warm-up."""
    plan = LoadPlan("ddim:1=1,iddim:4:m=0.6:count=2=1,score:images=3:scales=all=1", rate=200, duration=0.5, warmup=0.25)
    result, outcomes = run_load(plan, fake.address)
    assert len(fake.requests) == len(outcomes)
    measured = [outcome for outcome in outcomes if outcome.scheduled >= 0.25]
    assert sum(kind.sent for kind in result.kinds) == len(measured) < len(outcomes)
    assert result.offered == pytest.approx(len(measured) / 0.5)
    iddim = [request for request in fake.requests if getattr(request, "sampler", "") == "iddim"]
    assert all((list(r.m), r.count, r.steps, r.model) == ([0.6], 2, 4, "toy") for r in iddim)
    assert len({request.seed for request in fake.requests}) == len(fake.requests)
    scored = [request for request in fake.requests if hasattr(request, "scales")]
    assert all(list(request.images.shape) == [3, 1, 4, 6] for request in scored)
    assert [kind.batch_rows for kind in result.kinds] == [2.5, 2.5, 3]
    assert result.server == {
        "version": "0",
        "engine": "fake",
        "models": dict.fromkeys([k.name for k in result.kinds], "toy"),
    }


def test_errors_are_counted_by_code_and_kept_out_of_the_percentiles(fake: FakeServer) -> None:
    """Refusals of one kind leave the figures of the other alone."""
    result, _ = run_load(LoadPlan("ddim:1=1,ddim:2:model=full=1", rate=100, duration=0.4, warmup=0), fake.address)
    good, bad = result.kinds
    assert (good.ok, good.errors) == (good.sent, {})
    assert (bad.ok, bad.errors) == (0, {"RESOURCE_EXHAUSTED": bad.sent})
    assert math.isnan(bad.latency["p50"])
    assert result.errors == bad.errors
    assert result.achieved <= good.ok / 0.4 + 1e-9


def test_requests_beyond_the_bound_are_not_sent_and_count_as_errors(fake: FakeServer) -> None:
    """A server that answers too slowly cannot make the generator pile up requests without end."""
    fake.sample_seconds = 0.3
    result, _ = run_load(LoadPlan("ddim:1=1", rate=100, duration=0.25, warmup=0, max_open=2), fake.address)
    (kind,) = result.kinds
    assert kind.errors == {NOT_SENT: kind.sent - kind.ok}
    assert 2 <= kind.ok <= 4
    assert len(fake.requests) == kind.ok


def test_requests_that_take_too_long_end_at_their_deadline(fake: FakeServer) -> None:
    """A run ends soon after its duration even if the server never answers."""
    fake.sample_seconds = 1.0
    result, _ = run_load(LoadPlan("ddim:1=1", rate=40, duration=0.2, warmup=0, timeout=0.2), fake.address)
    (kind,) = result.kinds
    assert kind.errors == {"DEADLINE_EXCEEDED": kind.sent}


def test_figures_of_a_known_run() -> None:
    """Throughput counts answers within the measured window, whenever they were asked for; percentiles are exact."""
    plan = LoadPlan("ddim:1=1,score=1", rate=1, duration=10, warmup=2)
    outcomes = [
        Outcome(0, 1.5, 0.0, 1.0, "OK", 0.1, 0.2, 0.3, 8),  # asked in the warm-up, answered in the window
        *[Outcome(0, 2.0 + i, 0.001, 0.1 * (i + 1), "OK", 0.1, 0.2, 0.3, 4) for i in range(9)],
        Outcome(0, 11.5, 0.002, 1.0, "OK", 0.3, 0.2, 0.5, 4),  # answered after the window
        Outcome(1, 5.0, 0.001, 2.0, "UNAVAILABLE"),
    ]
    result = summarise(plan, parse_mix(plan.mix), outcomes, {}, {})
    ddim, score = result.kinds
    assert (result.offered, result.achieved) == (1.1, 1.0)
    assert (ddim.sent, ddim.ok, score.sent, score.ok) == (10, 10, 1, 0)
    assert ddim.latency == pytest.approx({"p50": 0.5, "p90": 0.9, "p99": 1.0, "max": 1.0})
    assert ddim.queue_seconds == pytest.approx((9 * 0.1 + 0.3) / 10)
    assert (ddim.batch_rows, result.errors) == (4, {"UNAVAILABLE": 1})
    assert result.lag["max"] == 0.002


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rate": 0}, "rate: must be positive"),
        ({"rate": math.nan}, "rate: must be positive"),
        ({"duration": 1e9}, "duration: with the warm-up at most 3600 s"),
        ({"rate": 1e6}, "rate: at most 500000 requests"),
        ({"warmup": -1}, "warmup: must not be negative"),
        ({"max_open": 0}, "max_open: must be at least 1"),
    ],
)
def test_a_load_without_bounds_is_refused(options: dict[str, float], said: str) -> None:
    """Time and number of requests are bounded before anything is sent."""
    with pytest.raises(LoadError, match=said):
        LoadPlan(**options)  # type: ignore[arg-type]


METRICS = b"""# HELP fewstep_batch_rows Network rows in a batch.
# TYPE fewstep_batch_rows histogram
fewstep_batch_rows_bucket{le="1.0",model="toy",network="unet"} 1.0
fewstep_batch_rows_bucket{le="+Inf",model="toy",network="unet"} 4.0
fewstep_batch_rows_count{model="toy",network="unet"} 4.0
fewstep_batch_rows_sum{model="toy",network="unet"} 22.0
"""


def test_batch_sizes_come_from_the_metrics_page() -> None:
    """What ran during a load is the difference of two readings of the server's histogram."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(METRICS)

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as page:
        threading.Thread(target=page.handle_request).start()
        after = read_batches(f"127.0.0.1:{page.server_port}")
    assert after == {("toy", "unet"): (4, 22)}
    before = {("toy", "unet"): (1.0, 2.0), ("toy", "idle"): (3.0, 3.0)}
    after[("toy", "idle")] = (3.0, 3.0)
    assert batches_between(before, after) == {"toy/unet": {"batches": 3, "mean_rows": 20 / 3}}


def test_the_command_leaves_a_document_and_a_picture(
    fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m bench load` prints a table and writes figures with their surroundings."""
    arguments = ["load", "--address", fake.address, "--mix", "ddim:1=1,score=1", "--rate", "50", "--duration", "0.5"]
    assert main([*arguments, "--warmup", "0.1", "--output", str(tmp_path)]) == 0
    document = json.loads((tmp_path / "load.json").read_text())
    assert document["plan"]["rate"] == 50
    assert {kind["name"] for kind in document["kinds"]} == {"ddim:1", "score"}
    assert set(document["kinds"][0]["latency"]) == {"p50", "p90", "p99", "max"}
    surroundings = document["environment"]
    assert {"cpu", "cores", "load_average", "packages", "commit", "time"} <= set(surroundings)
    assert surroundings["packages"]["numpy"]
    with Image.open(tmp_path / "load.png") as picture:
        assert min(picture.size) > 500
    assert "ddim:1" in capsys.readouterr().err


def test_the_command_fails_where_nothing_was_answered(fake: FakeServer, tmp_path: Path) -> None:
    """Exit code 1 tells a script that there are no figures; 2 that the arguments were wrong."""
    where = ["--rate", "50", "--duration", "0.2", "--warmup", "0", "--output", str(tmp_path)]
    assert main(["load", "--address", fake.address, "--mix", "ddim:1:model=full=1", *where]) == 1
    assert main(["load", "--address", "127.0.0.1:1", "--timeout", "0.1", *where]) == 1
    assert main(["load", "--address", fake.address, "--mix", "ddim", *where]) == 2
    assert main(["load", "--address", fake.address, "--rate", "-1"]) == 2
