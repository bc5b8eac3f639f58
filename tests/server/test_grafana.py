"""Dashboard and alert rules ask for what the server tells, and for all of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.request import urlopen

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from server.config import Limits
from server.loop.engine import Engine
from server.loop.engines import Engines
from server.observability.metrics import Metrics

from ..conftest import ROOT

GRAFANA = ROOT / "server" / "observability" / "grafana"
DASHBOARD = json.loads((GRAFANA / "fewstep.json").read_text())
RULES = [rule for group in yaml.safe_load((GRAFANA / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
ALARMS = (ROOT / "server" / "OPERATIONS.md").read_text().split("## Alarms")[1].split("\n## ")[0]

SUFFIXES = {
    "histogram": ("_bucket", "_sum", "_count"),
    "counter": ("_total",),
    "gauge": ("",),
}
UNUSED = {
    "process_virtual_memory_bytes": "resident memory tells more",
    "process_start_time_seconds": "for those who want to alarm on restarts",
}
"""Metrics that no panel and no rule asks for, and why."""

OUTSIDE = {"le", "instance", "job"}
"""Labels that Prometheus adds."""


def panels() -> Iterator[dict[str, Any]]:
    yield from (panel for panel in DASHBOARD["panels"] if panel["type"] != "row")


EXPRESSIONS = {
    **{
        f"panel {panel['title']} {target['refId']}": target["expr"] for panel in panels() for target in panel["targets"]
    },
    **{f"rule {rule['alert']}": rule["expr"] for rule in RULES},
}


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return Metrics(Engines([Engine(Limits())]), "onnxruntime")


@pytest.fixture(scope="module")
def families(metrics: Metrics) -> list[Metric]:
    return list(metrics.registry.collect())


def samples_of(families: list[Metric]) -> set[str]:
    """The names that can be asked for."""
    return {family.name + suffix for family in families for suffix in SUFFIXES[family.type]}


def asked(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:fewstep|process)_\w+", expression))


def labels_of(metrics: Metrics, families: list[Metric]) -> set[str]:
    """The labels of all metrics; of those without a sample yet from what they were made of."""
    made = (collector for collector in vars(metrics).values() if isinstance(collector, MetricWrapperBase))
    declared = {label for collector in made for label in collector._labelnames}
    return declared | {label for family in families for sample in family.samples for label in sample.labels}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_what_is_asked_for_exists(name: str, metrics: Metrics, families: list[Metric]):
    """Each metric and each label of an expression is one of the server's, or one that Prometheus adds."""
    expression = EXPRESSIONS[name]
    assert asked(expression)
    assert asked(expression) <= samples_of(families)
    groups = re.findall(r"\b(?:by|on) \(([^)]*)\)", expression)
    matchers = re.findall(r'(\w+)\s*(?:=~|!=|=|!~)\s*"', expression)
    labels = {label.strip() for group in groups for label in group.split(",")} | set(matchers)
    assert labels <= labels_of(metrics, families) | OUTSIDE


def test_every_metric_is_shown(families: list[Metric]):
    """Each metric has a panel or a rule, or a reason to have none."""
    names = {family.name for family in families}
    wanted = set().union(*(asked(expression) for expression in EXPRESSIONS.values()))
    shown = {family.name for family in families for suffix in SUFFIXES[family.type] if family.name + suffix in wanted}
    assert names - shown == UNUSED.keys()


def test_a_real_server_has_them_all(server, metrics: Metrics):
    """The metrics page of a running server has the families that these tests were made with."""
    with urlopen(f"http://127.0.0.1:{server.app.metrics_port}/metrics", timeout=10) as page:
        families = text_string_to_metric_families(page.read().decode())
        # When each was made comes with every metric that has been used.
        found = {family.name.removesuffix("_created") for family in families}
    assert found == {family.name for family in metrics.registry.collect()}


def test_panels_are_whole():
    """Ids are unique, panels do not overlap, and each says what it shows, from the data source that is chosen."""
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert all(panel["title"] and panel["description"] and panel["targets"] for panel in panels())
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in panels())
    assert all('instance=~"$instance"' in target["expr"] for panel in panels() for target in panel["targets"])


def test_alarms_rules_and_panels_agree():
    """Each alarm of the operators' page has a rule and a row of panels; there are no other rules."""
    alarms = re.findall(r"^\| ([a-z ]+) \| `(\w+)`", ALARMS, re.MULTILINE)
    assert {rule for _, rule in alarms} == {rule["alert"] for rule in RULES}
    rows = [panel["title"].partition(":")[0].lower() for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert {alarm for alarm, _ in alarms} <= set(rows)


def test_rules_are_whole():
    """Each rule has a severity and a summary."""
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
