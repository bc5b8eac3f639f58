"""The operators' page tells of every option, metric and status code that there is, and of no other."""

from __future__ import annotations

import re
import subprocess
import sys

from server.config import Limits
from server.errors import STATUS
from server.loop.batcher import Batcher
from server.metrics import Metrics

from ..conftest import ROOT

TEXT = (ROOT / "server" / "OPERATIONS.md").read_text()


def test_every_option_is_described():
    """The options of `python -m server --help` and those of the page are the same."""
    help_text = subprocess.run(
        [sys.executable, "-m", "server", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    options = set(re.findall(r"--[a-z][a-z-]+", help_text.split("options:", 1)[1])) - {"--help"}
    assert set(re.findall(r"`(--[a-z][a-z-]+)`", TEXT)) == options


def test_every_metric_is_described():
    """The metrics of the registry and those of the page are the same."""
    metrics = Metrics(Batcher(Limits(), lambda: 0.0), "onnxruntime")
    names = {family.name for family in metrics.registry.collect()}
    described = set(re.findall(r"\| .*?\|", TEXT.split("## Metrics")[1].split("## Alarms")[0]))
    assert set(re.findall(r"`(fewstep_\w+)`", "".join(described))) == names


def test_every_status_code_is_described():
    """The codes of the error table and those of the page are the same."""
    described = TEXT.split("## Status codes")[1].split("## Metrics")[0]
    first_cells = "".join(line.split("|")[1] for line in described.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`([A-Z_]+)`", first_cells)) == {code.name for code in STATUS.values()}
