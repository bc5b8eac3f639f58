"""What is shown while a load runs."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from rich.console import Console

from bench.load import LoadPlan
from bench.load.live import LiveTable, Tally
from bench.percentiles import percentile
from bench.sender import Outcome


def test_percentiles_so_far_are_right_to_one_percent() -> None:
    """Whatever the latencies; failed requests have none."""
    seconds = np.random.default_rng(0).lognormal(-4, 2, 1000).tolist()
    tally = Tally()
    for latency in seconds:
        tally.add(Outcome(0, 0.0, 0.0, latency, "OK"))
    tally.add(Outcome(0, 0.0, 0.0, 1e9, "UNAVAILABLE"))
    for share in (1, 50, 99, 100):
        assert tally.percentile(share) == pytest.approx(percentile(seconds, share), rel=0.01)
    assert (tally.done, tally.failed) == (1001, 1)
    assert math.isnan(Tally().percentile(50))


def test_the_table_counts_by_kind_and_leaves_the_warm_up_out() -> None:
    """Sent and open are of all requests, the rest of those after the warm-up; the next load begins anew."""
    table = LiveTable(Console(file=io.StringIO()))
    done = [
        Outcome(0, 0.5, 0.0, 9.0, "OK"),
        Outcome(0, 1.5, 0.0, 0.1, "OK"),
        Outcome(1, 1.6, 0.0, 0.2, "OK"),
        Outcome(1, 1.7, 0.0, 0.3, "UNAVAILABLE"),
    ]
    with table:
        table.start(LoadPlan(warmup=1), ["ddim:1", "score"], "50 requests/s")
        table.update(3, done[:2])
        table.update(7, done)
        title, _, *rows = table.table(7).plain.splitlines()
        assert title == "50 requests/s: sent 7, open 3"
        assert [row.split() for row in rows] == [
            ["ddim:1", "1", "0", "100.3", "100.3"],
            ["score", "2", "1", "199.9", "199.9"],
            ["all", "3", "1", "100.3", "199.9"],
        ]
        table.start(LoadPlan(), ["ddim:1"], "again")
        assert table.table(0).plain.splitlines()[-1].split() == ["all", "0", "0", "-", "-"]


def test_nothing_is_drawn_where_there_is_no_terminal() -> None:
    """A log file gets no progress; a terminal does."""
    shown = {}
    for terminal in (False, True):
        file = io.StringIO()
        with LiveTable(Console(file=file, force_terminal=terminal)) as table:
            table.start(LoadPlan(), ["ddim:1"], "load")
            table.update(5, [])
        shown[terminal] = file.getvalue()
    assert "sent 5" not in shown[False]
    assert "sent 5" in shown[True]
