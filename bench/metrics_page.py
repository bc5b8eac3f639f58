"""Reads a server's page of Prometheus metrics."""

from __future__ import annotations

import urllib.request

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

TIMEOUT = 10.0


def fetch_page(address: str) -> str:
    """The page as it is. address: HOST:PORT.

    Raises:
        OSError: the page cannot be read.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the page is never behind a proxy
    with opener.open(f"http://{address}/metrics", timeout=TIMEOUT) as page:
        text: str = page.read().decode()
        return text


def parse_page(text: str) -> list[Sample]:
    """Every sample of a page."""
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def read_metrics(address: str) -> list[Sample]:
    """Every sample of the page. address: HOST:PORT.

    Raises:
        OSError: the page cannot be read.
    """
    return parse_page(fetch_page(address))


def total(samples: list[Sample], name: str) -> float:
    """The sum of a metric over its labels; 0 where it is not on the page."""
    return sum(sample.value for sample in samples if sample.name == name)
