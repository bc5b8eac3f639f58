"""The metrics port from outside: its pages, what they tell, and what they refuse."""

from __future__ import annotations

import base64
import json
import re
import socket
import threading
import time
from hashlib import sha256
from html.parser import HTMLParser
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from protos import fewstep_pb2 as pb
from server.config import Limits, Security
from server.observability.metrics_server import MetricsServer
from server.observability.recent import COLUMNS, STEPS_LEFT

from ..running import UNCUT, RunningServer, running_server

EVIL = "<script>alert(1)</script>\"'&\n\x1b[2J"


def sample(**fields: Any) -> pb.SampleRequest:
    return pb.SampleRequest(**({"model": "digits-ddpm", "steps": 2, "seed": 1} | fields))


def get(
    server: RunningServer, path: str, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[HTTPResponse, str]:
    connection = HTTPConnection("127.0.0.1", server.app.metrics_port, timeout=10)
    try:
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        return response, response.read().decode()
    finally:
        connection.close()


def status(server: RunningServer) -> dict[str, Any]:
    return json.loads(get(server, "/status.json")[1])


def eventually(server: RunningServer, condition: Any) -> dict[str, Any]:
    """The status once a condition holds: calls are counted when their answers have left."""
    deadline = time.monotonic() + 10
    while not condition(found := status(server)):
        assert time.monotonic() < deadline, found
        threading.Event().wait(0.02)
    return found


class Page(HTMLParser):
    """A page as a browser sees it: tags that match, its text, and what it would load or run."""

    VOID = frozenset({"meta", "link", "img", "br", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def test_the_port_has_three_pages_and_no_other(server: RunningServer):
    """Metrics, the page, its data; anything else is not found, and says what there is."""
    kinds = {
        path: get(server, path)[0].getheader("Content-Type", "").split(";")[0]
        for path in ("/", "/metrics", "/status.json")
    }
    assert kinds == {"/": "text/html", "/metrics": "text/plain", "/status.json": "application/json"}
    for path in ("/metrics/", "/favicon.ico", "/../etc/passwd", "/%2e%2e", "/status.html", "*"):
        response, text = get(server, path)
        assert (response.status, "/status.json" in text) == (404, True), path
    assert get(server, "/?a=b")[0].status == get(server, "/metrics?a=b")[0].status == 200


@pytest.mark.parametrize("path", ["/", "/metrics", "/status.json", "/nothing"])
def test_pages_are_only_read(server: RunningServer, path: str):
    """HEAD is GET without the body; every other method is refused."""
    got, _ = get(server, path)
    head, nothing = get(server, path, "HEAD")
    assert (head.status, nothing, head.getheader("Content-Type")) == (got.status, "", got.getheader("Content-Type"))
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        refused, _ = get(server, path, method)
        assert (refused.status, refused.getheader("Allow")) == (405, "GET, HEAD")


def test_prometheus_gets_the_formats_it_asks_for(server: RunningServer):
    """Plain text by default, OpenMetrics and gzip where they are accepted."""
    assert "# TYPE fewstep_request_seconds histogram" in get(server, "/metrics")[1]
    response, text = get(server, "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert response.getheader("Content-Type", "").startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")
    connection = HTTPConnection("127.0.0.1", server.app.metrics_port, timeout=10)
    connection.request("GET", "/metrics", headers={"Accept-Encoding": "gzip"})
    assert connection.getresponse().getheader("Content-Encoding") == "gzip"
    connection.close()


def test_web_sites_cannot_read_the_pages(server: RunningServer):
    """On loopback a name that is not this machine's own is refused, as are frames and other origins."""
    for host in ("evil.example", "evil.example:8002", "127.0.0.1.evil.example", "[", "localhost.evil.example"):
        response, text = get(server, "/status.json", headers={"Host": host})
        assert response.status == 403, host
        assert "versions" not in text
    for host in ("localhost", "localhost:8002", "127.0.0.1:8002", "[::1]:8002"):
        assert get(server, "/status.json", headers={"Host": host})[0].status == 200, host
    response, _ = get(server, "/")
    assert response.getheader("Access-Control-Allow-Origin") is None
    assert response.getheader("Cross-Origin-Resource-Policy") == "same-origin"
    assert "frame-ancestors 'none'" in response.getheader("Content-Security-Policy", "")


def test_the_page_runs_its_own_script_and_style_only(server: RunningServer):
    """The policy names the hashes of what the page holds; no attribute holds any, and nothing comes from elsewhere."""
    response, text = get(server, "/")
    policy = response.getheader("Content-Security-Policy", "")
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert f"{tag}-src 'sha256-{base64.b64encode(sha256(content.encode()).digest()).decode()}'" in policy
    page = Page(text)
    assert not any(name == "style" or name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert {attributes["href"] for _, attributes in page.tags if "href" in attributes} == {"/metrics", "/status.json"}
    assert not any("src" in attributes for _, attributes in page.tags)
    assert "url(" not in text
    assert "@import" not in text


def test_what_callers_write_stays_text(server: RunningServer):
    """Markup and control characters in a request show up as text, on the page and in its data."""
    before = Page(get(server, "/")[1])
    metadata = (("x-request-id", "<b>&quot;"),)
    with pytest.raises(grpc.RpcError):
        server.sample(sample(model=EVIL), metadata=metadata)
    found = eventually(server, lambda found: any("alert" in error["text"] for error in found["errors"]))
    error = next(error for error in found["errors"] if "alert" in error["text"])
    assert error["text"].isprintable()
    assert (error["rpc"], error["code"], error["request_id"]) == ("Sample", "NOT_FOUND", "<b>&quot;")
    assert abs(error["time"] - time.time()) < 60
    page = Page(get(server, "/")[1])
    assert "<script>alert(1)</script>" in page.text
    assert "<b>&quot;" in page.text
    assert (page.count("script"), page.count("b")) == (before.count("script"), 0)
    assert "\x1b" not in page.text


def test_models_and_calls_are_told(server: RunningServer):
    """Each model with its networks and what their steps cost; each method with its latencies."""
    for count in (1, 3, 1, 4):
        server.sample(sample(count=count))
    found = eventually(
        server, lambda found: any(call["rpc"] == "Sample" and call["ok"] >= 4 for call in found["calls"])
    )
    assert (found["ready"], found["trouble"]) == (True, "")
    assert set(found["versions"]) == {"fewstep", "Python", "onnxruntime", "gRPC"}
    models = {model["name"]: model for model in found["models"]}
    assert {"digits-ddpm", "digits-vdrme"} <= models.keys()
    (denoiser,) = models["digits-ddpm"]["networks"]
    assert denoiser["fixed_seconds"] + denoiser["seconds_per_row"] > 0
    assert models["digits-ddpm"]["capacity"] == Limits().max_rows_in_flight
    (call,) = [call for call in found["calls"] if call["rpc"] == "Sample"]
    assert 0 < call["p50"] <= call["p90"] <= call["p99"] < 60
    text = Page(get(server, "/")[1]).text
    for word in ("fewstep", "ready", "digits-ddpm", "version 1", "denoiser", "Sample", "p99"):
        assert word in text


def rows_by_steps_left(found: dict[str, Any]) -> list[float]:
    """Rows of the denoiser's columns, summed over the picture."""
    columns = [
        column for lane in found["picture"]["lanes"] if lane["network"] == "denoiser" for column in lane["columns"]
    ]
    return [sum(column[index] for column in columns) for index in range(len(STEPS_LEFT))]


def test_the_picture_shows_the_batches(repository: Path):
    """Rows over time by the steps that they have left: 9 rows of 12 steps go through all classes."""
    with running_server(repository, limits=UNCUT) as server:
        server.sample(sample(steps=12, spacing="linear", count=9))
        # The last step is drawn after its answer has left.
        picture = eventually(server, lambda found: all(rows > 0 for rows in rows_by_steps_left(found)))["picture"]
        page = Page(get(server, "/")[1])
    assert tuple(picture["steps_left"]) == STEPS_LEFT
    (lane,) = [lane for lane in picture["lanes"] if lane["network"] == "denoiser"]
    assert len(lane["columns"]) == COLUMNS
    assert max(sum(column) for column in lane["columns"]) == pytest.approx(9, abs=0.1)
    (drawing,) = [a for tag, a in page.tags if tag == "svg" and "denoiser" in (a.get("aria-label") or "")]
    assert drawing["viewbox"] == f"0 0 {COLUMNS} 100"
    paths = [attributes["d"] or "" for tag, attributes in page.tags if tag == "path"]
    for path in paths:
        for x, y, height in re.findall(r"M(\d+) ([\d.]+)h1v([\d.]+)h-1z", path):
            assert 0 <= int(x) < COLUMNS
            assert -0.1 <= float(y) <= float(y) + float(height) <= 100.1


def test_rows_in_flight_are_told_by_their_progress(server: RunningServer):
    """While a request of a hundred steps runs, its rows are in flight with steps to go."""
    call = server.later(sample(steps=100, spacing="linear", count=40))
    found = eventually(server, lambda found: found["load"]["rows_in_flight"] == 40)
    (model,) = [model for model in found["models"] if model["name"] == "digits-ddpm"]
    assert (model["rows_in_flight"], sum(model["in_flight_by_steps_left"])) == (40, 40)
    assert found["load"]["requests_open"] == 1
    text = Page(get(server, "/")[1])
    assert any("40 rows with" in (attributes.get("aria-label") or "") for _, attributes in text.tags) or call.done()
    call.result(60)
    assert eventually(server, lambda found: found["load"]["rows_in_flight"] == 0)["load"]["rows_waiting"] == 0


def test_an_idle_server_has_a_page(repository: Path):
    """Before the first call there is nothing to draw, and the page says so; a call without credentials shows up."""
    with running_server(repository) as server:
        page = Page(get(server, "/")[1])
        assert "No batch has run" in page.text
        assert page.count("path") == 0


def test_a_draining_server_says_why_it_is_not_ready(repository: Path):
    """The page, its data and the gauge tell that no requests are taken, and why."""
    with running_server(repository) as server:
        assert "\nfewstep_ready 1.0" in get(server, "/metrics")[1]
        server.engine.close_admission()
        assert status(server)["trouble"] == "draining"
        assert "not ready: draining" in Page(get(server, "/")[1]).text
        assert "\nfewstep_ready 0.0" in get(server, "/metrics")[1]


def test_strangers_leave_no_more_than_a_line(repository: Path, tmp_path: Path):
    """Calls without credentials are among the errors, without what they sent, and push nothing else out."""
    tokens = tmp_path / "tokens.toml"
    tokens.touch(mode=0o600)
    tokens.write_text(f'[clients.gallery]\ntokens = ["{"t" * 40}"]\n')
    with running_server(repository, security=Security(tokens=tokens)) as server:
        mine = (("authorization", f"Bearer {'t' * 40}"),)
        with pytest.raises(grpc.RpcError):
            server.sample(sample(steps=0), metadata=mine)
        for _ in range(100):
            with pytest.raises(grpc.RpcError):
                server.sample(sample(), metadata=(("authorization", "Bearer " + "w" * 40),))
        found = eventually(server, lambda found: len(found["errors"]) == 21)
        codes = [error["code"] for error in found["errors"]]
        assert codes.count("UNAUTHENTICATED") == 20
        assert codes.count("INVALID_ARGUMENT") == 1
        assert "wwww" not in str(found)
        assert "tttt" not in str(found)


def test_slow_readers_hold_nobody_up(server: RunningServer):
    """Connections that say nothing do not keep others from the pages."""
    idle = [socket.create_connection(("127.0.0.1", server.app.metrics_port)) for _ in range(30)]
    try:
        assert get(server, "/metrics")[0].status == 200
    finally:
        for connection in idle:
            connection.close()


def test_pages_that_fail_are_logged(caplog: pytest.LogCaptureFixture):
    """A bug in a page ends that connection, is in the log, and leaves the port open."""

    def broken() -> Any:
        raise RuntimeError("a bug in a page")

    pages = MetricsServer("127.0.0.1", 0, CollectorRegistry(), {"/": broken})
    pages.start()
    try:
        for path, fails in (("/", True), ("/metrics", False)):
            connection = HTTPConnection(*pages.address, timeout=10)
            connection.request("GET", path)
            if fails:
                with pytest.raises(ConnectionError):
                    connection.getresponse()
            else:
                assert connection.getresponse().status == 200
            connection.close()
    finally:
        pages.stop()
    assert "a bug in a page" in caplog.text


def test_a_deterministic_server_tells_its_padding(repository: Path):
    """An engine without measured batch invariance pads to one size, and the metrics tell how much was for nobody."""
    with running_server(repository, engine="torch", deterministic=True, limits=Limits(max_batch_rows=8)) as server:
        server.sample(sample(steps=2, count=3))
        eventually(server, lambda found: any(call["ok"] for call in found["calls"]))
        assert 'fewstep_padding_rows_total{model="digits-ddpm",network="denoiser"} 10.0' in get(server, "/metrics")[1]
