"""The soak: a few seconds of it on the real server, and that it notices what drifts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from bench.cli import main
from bench.soak import SoakPlan, find_capacity
from bench.soak_result import Bounds, Drift, Window, drift_of
from tests.bench.fake_server import fake_server

WINDOW = Window(
    start=0.0,
    sent=100,
    failed=0,
    p50=0.01,
    p99=0.05,
    batch_rows=4.0,
    busy=0.8,
    rss_mb=400.0,
    threads=13.0,
    descriptors=20.0,
)


def test_a_few_seconds_of_soak(repository: Path, tmp_path: Path) -> None:
    """Capacity, windows, drift and the picture; bounds are wide, for a machine that has other things to do."""
    arguments = ["soak", "--repository", str(repository), "--minutes", "0.05", "--window", "1", "--ramp", "0.5"]
    wide = ["--max-p50", "100", "--max-p99", "100", "--max-rss-mb", "200"]
    mix = ["--mix", "ddim:1=2,ddim:4=1,vdrme:4=1,score=2", "--load", "0.3"]
    assert main([*arguments, *wide, *mix, "--output", str(tmp_path)]) == 0
    document = json.loads((tmp_path / "soak.json").read_text())
    assert document["rate"] == pytest.approx(0.3 * document["capacity"])
    assert [window["start"] for window in document["windows"]] == [0, 1, 2]
    assert all(window["sent"] > 0 and window["p99"] >= window["p50"] > 0 for window in document["windows"])
    assert all(0 < window["busy"] < 1.5 and window["batch_rows"] >= 1 for window in document["windows"])
    assert document["environment"]["load_average"]
    report = (tmp_path / "soak.md").read_text()
    assert report.startswith("# Soak: within its bounds")
    with Image.open(tmp_path / "soak.png") as picture:
        assert min(picture.size) > 500


def test_capacity_is_where_the_server_cannot_keep_up() -> None:
    """A server that takes 16 requests at a time, 0.1 s each, answers 160 a second at most, however many are sent."""
    with fake_server() as fake:
        fake.sample_seconds = 0.1
        rates: list[float] = []
        capacity = find_capacity(SoakPlan(mix="ddim:1=1", ramp=0.75), fake.address, rates.append)
    # On a busy machine it is less; what was offered last is more than was answered.
    assert 0 < capacity <= 165
    assert rates == [20, 40, 80, 160, 320][: len(rates)]
    assert rates[-1] >= capacity


def test_a_server_that_answers_nothing_has_no_capacity() -> None:
    """There is no rate to soak it at."""
    with fake_server() as fake, pytest.raises(ValueError, match="answered no request"):
        find_capacity(SoakPlan(mix="ddim:1:model=full=1", ramp=0.2), fake.address)


def test_drift_compares_the_first_quarter_with_the_last() -> None:
    """Differences of what the process holds, ratios of latencies, the share that failed; one outlier is no drift."""
    windows = [replace(WINDOW, start=float(i), rss_mb=400.0 + i, p50=0.01 * (1 + i / 11)) for i in range(12)]
    windows[11] = replace(windows[11], p99=9.0, threads=99.0, failed=3)
    drift = drift_of(windows)
    assert (drift.rss_mb, drift.threads, drift.descriptors, drift.p99) == (9.0, 0.0, 0.0, 1.0)
    assert drift.p50 == pytest.approx((1 + 10 / 11) / (1 + 1 / 11))
    assert drift.failed == 3 / 1200
    assert drift_of([WINDOW]) == Drift(0.0, 0.0, 0.0, 1.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="at least one"):
        drift_of([])


def test_what_grew_is_named_with_its_bound() -> None:
    """Each figure has its own bound; what could not be measured breaks none."""
    bounds = Bounds()
    assert Drift(39.0, 4.0, 8.0, 1.4, 1.9, 0.0).beyond(bounds) == []
    broken = Drift(41.0, 5.0, 9.0, 1.6, 2.1, 0.01).beyond(bounds)
    assert [text.split()[0] for text in broken] == ["rss_mb", "threads", "descriptors", "p50", "p99", "failed"]
    nothing = float("nan")
    assert Drift(nothing, nothing, nothing, 1.0, 1.0, 0.0).beyond(bounds) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"minutes": 0}, "minutes: must be above 0"),
        ({"minutes": 1e9}, "minutes: must be above 0 and at most 1440"),
        ({"load": 0}, "load: must be above 0"),
        ({"load": float("nan")}, "load: must be above 0"),
        ({"ramp": float("inf")}, "ramp: must be positive"),
        ({"minutes": 1, "window": 61}, "window: must be within 0..60 s"),
    ],
)
def test_a_soak_without_bounds_is_refused(options: dict[str, float], said: str) -> None:
    """Time and load are bounded before a server is started."""
    with pytest.raises(ValueError, match=said):
        SoakPlan(**options)  # type: ignore[arg-type]


def test_windows_cover_the_time() -> None:
    """Twenty minutes are sixty windows of 20 s; a short soak has windows of a second."""
    assert (SoakPlan(minutes=20).windows, SoakPlan(minutes=20).window_seconds) == (60, 20.0)
    assert (SoakPlan(minutes=0.1).windows, SoakPlan(minutes=0.1).window_seconds) == (6, 1.0)
    assert (SoakPlan(minutes=0.005).windows, SoakPlan(minutes=0.005).window_seconds) == (1, 0.3)
    assert SoakPlan(minutes=1, window=7).windows == 9
