"""What a server's metrics page says of its batches while a load runs."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench.load.occupancy import Batches, Watch, batches_between, interval_between
from bench.metrics_page import parse_page
from bench.targets import TargetError

PAGE = """# HELP fewstep_batch_rows Network rows in a batch.
# TYPE fewstep_batch_rows histogram
fewstep_batch_rows_bucket{{le="+Inf",model="toy",network="unet"}} {count}.0
fewstep_batch_rows_count{{model="toy",network="unet"}} {count}.0
fewstep_batch_rows_sum{{model="toy",network="unet"}} {rows}.0
fewstep_batch_rows_bucket{{le="+Inf",model="toy",network="idle"}} 3.0
fewstep_batch_rows_count{{model="toy",network="idle"}} 3.0
fewstep_batch_rows_sum{{model="toy",network="idle"}} 3.0
# HELP fewstep_step_seconds One step.
# TYPE fewstep_step_seconds histogram
fewstep_step_seconds_sum{{model="toy",network="unet",rows="4"}} {seconds}
fewstep_step_seconds_sum{{model="toy",network="idle",rows="4"}} 1.5
# HELP fewstep_rows_in_flight Rows.
# TYPE fewstep_rows_in_flight gauge
fewstep_rows_in_flight 7.0
# HELP fewstep_rows_waiting Rows.
# TYPE fewstep_rows_waiting gauge
fewstep_rows_waiting 2.0
"""


@contextmanager
def pages() -> Iterator[str]:
    """A server whose page shows two batches of 6 rows and 10 ms more each time."""
    fetched = 0

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal fetched
            fetched += 1
            self.send_response(200)
            self.end_headers()
            self.wfile.write(PAGE.format(count=2 * fetched, rows=12 * fetched, seconds=0.01 * fetched).encode())

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_batches_are_the_difference_of_two_readings() -> None:
    """Networks that ran nothing in between are left out."""
    before = parse_page(PAGE.format(count=1, rows=2, seconds=0))
    after = parse_page(PAGE.format(count=4, rows=22, seconds=0))
    assert batches_between(before, after) == {"toy/unet": Batches(3, 20 / 3)}


def test_an_interval_has_the_shares_of_its_time() -> None:
    """Busy is the time in steps, over the interval; rows are those at its end."""
    before = parse_page(PAGE.format(count=1, rows=2, seconds=0.5))
    after = parse_page(PAGE.format(count=3, rows=8, seconds=1.5))
    interval = interval_between((1.0, before), (3.0, after))
    assert (interval.start, interval.seconds, interval.busy) == (1.0, 2.0, 0.5)
    assert (interval.in_flight, interval.waiting) == (7, 2)
    assert interval.networks == {"toy/unet": Batches(2, 3)}


def test_the_page_is_looked_at_during_the_load() -> None:
    """Before, after, and in between as often as asked; none of it is lost."""
    seen = threading.Event()
    with pages() as address:
        with Watch(address, 0.02) as watch:
            while len(watch.timeline(0.0)) < 3:
                seen.wait(0.02)
        timeline = watch.timeline(0.0)
        assert len(timeline) >= 3
        assert all(interval.networks == {"toy/unet": Batches(2, 6)} for interval in timeline)
        assert watch.overall() == {"toy/unet": Batches(2 * len(timeline), 6)}
        with Watch(address, 0) as twice:
            pass
        assert len(twice.timeline(0.0)) == 1


def test_a_page_that_is_not_there_is_told_before_the_load() -> None:
    """A wrong address ends the measurement before it begins."""
    with pytest.raises(TargetError, match=r"127\.0\.0\.1:1: no metrics page: .*refused"), Watch("127.0.0.1:1", 0):
        pass
