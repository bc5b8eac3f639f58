"""The operators' page tells of every option, metric, log field and status code that there is, and of no other."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from contextvars import Context
from types import SimpleNamespace

from server.access.clients import CLIENT, Client
from server.config import ClientLimits, Limits
from server.errors import STATUS
from server.loop.engine import Engine
from server.loop.engines import Engines
from server.observability.call import CALL, Call
from server.observability.logs import JsonFormatter
from server.observability.metrics import Metrics

from ..conftest import ROOT

TEXT = (ROOT / "server" / "OPERATIONS.md").read_text()


def section(title: str) -> str:
    return TEXT.split(f"## {title}\n")[1].split("\n## ")[0]


def test_every_option_is_described():
    """The options of `python -m server --help` and those of the page are the same."""
    help_text = subprocess.run(
        [sys.executable, "-m", "server", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    options = set(re.findall(r"--[a-z][a-z-]+", help_text.split("options:", 1)[1])) - {"--help"}
    assert set(re.findall(r"`(--[a-z][a-z-]+)`", TEXT)) == options


def test_every_metric_is_described():
    """The metrics of the registry and those of the page are the same."""
    metrics = Metrics(Engines([Engine(Limits())]), "onnxruntime")
    names = {family.name for family in metrics.registry.collect()}
    rows = [line for line in section("Metrics").splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])} == names


def test_every_log_field_is_described():
    """The fields of a JSON line with all that there can be, and those of the page."""
    made = logging.LogRecord("server", logging.ERROR, "", 0, "failed", None, (ValueError, ValueError("x"), None))
    made.__dict__.update(code="INTERNAL", seconds=1.0, left_out=1)

    def line() -> str:
        CALL.set(Call("id", "Sample", "model", SimpleNamespace(trace_id="0")))  # type: ignore[arg-type]
        CLIENT.set(Client("gallery", ClientLimits(), lambda: 0.0))
        return JsonFormatter().format(made)

    rows = [row.split("|")[1] for row in section("Log and request ids").splitlines() if row.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", "".join(rows))) == json.loads(Context().run(line)).keys()


def test_every_status_code_is_described():
    """The codes of the error table and those of the page are the same."""
    first_cells = "".join(line.split("|")[1] for line in section("Status codes").splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`([A-Z_]+)`", first_cells)) == {code.name for code in STATUS.values()}
