"""A comparison as text: compare.md."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from .result import Comparison, Ratio, Spread

_SECONDS = ("p50", "p90", "p99")


def markdown(comparison: Comparison) -> str:
    """The report: goals first, then a table for each scenario, then how it was measured."""
    return "\n".join(_lines(comparison)) + "\n"


def _lines(comparison: Comparison) -> Iterator[str]:
    setup = comparison.setup
    yield from ("# fewstep beside other servers", "", comparison.environment.line() + ".", setup.note, "")
    ratios = comparison.ratios()
    yield "| ratio | value | over the rounds | goal | met |"
    yield "| --- | --- | --- | --- | --- |"
    for ratio in (ratio for ratio in ratios if ratio.goal is not None):
        yield _goal_row(ratio)
    for scenario, title in setup.scenarios.items():
        yield from _scenario(comparison, scenario, title, [r for r in ratios if r.name.startswith(scenario)])
    yield from ("", "## Who was compared", "", "| name | what | version |", "| --- | --- | --- |")
    for name, title in setup.titles.items():
        yield f"| {name} | {title} | {setup.versions.get(name, '')} |"
    for name, reason in setup.left_out.items():
        yield f"| {name} | left out | {' '.join(reason.split())[:200]} |"
    yield ""
    yield f"The engine has {setup.threads} thread(s) everywhere."
    yield "How each peer is configured, and why: bench/peers/README.md."


def _scenario(comparison: Comparison, scenario: str, title: str, ratios: Sequence[Ratio]) -> Iterator[str]:
    numbers = comparison.numbers(scenario)
    yield from ("", f"## {scenario}: {title}", "")
    settings = comparison.setup.settings.get(scenario, {})
    if settings:
        yield from ("Found before the rounds: " + ", ".join(f"{n} {v:.4g}" for n, v in settings.items()) + ".", "")
    yield "| | " + " | ".join(_heading(number) for number in numbers) + " |"
    yield "| --- |" + " --- |" * len(numbers)
    for server in comparison.servers(scenario):
        cells = (_cell(number, comparison.spread(scenario, server, number)) for number in numbers)
        yield f"| {comparison.setup.titles[server]} | " + " | ".join(cells) + " |"
    without = [ratio for ratio in ratios if ratio.goal is None]
    if without:
        yield from ("", "; ".join(f"{ratio.name}: {_number(ratio.value)}" for ratio in without) + ".")


def _goal_row(ratio: Ratio) -> str:
    over, met = f"{_number(ratio.low)} to {_number(ratio.high)}", "yes" if ratio.met else "**no**"
    return f"| {ratio.name} | {_number(ratio.value)} | {over} | {ratio.goal} | {met} |"


def is_seconds(number: str) -> bool:
    """Whether a number is a latency, which is shown in milliseconds."""
    return number.endswith(_SECONDS)


def _heading(number: str) -> str:
    words = number.replace("_", " ")
    return f"{words}, ms" if is_seconds(number) else words


def _cell(number: str, spread: Spread | None) -> str:
    if spread is None:
        return ""
    factor = 1e3 if is_seconds(number) else 1.0
    median = _number(factor * spread.median)
    if spread.low == spread.high:
        return median
    return f"{median} ({_number(factor * spread.low)} to {_number(factor * spread.high)})"


def _number(value: float) -> str:
    if math.isnan(value):
        return "none"
    if math.isinf(value):
        return "unanswered"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
