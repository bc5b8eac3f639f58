"""The status as a page for people. Built as a tree of elements: what callers wrote cannot become markup."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterable, Sequence
from hashlib import sha256
from importlib.resources import files
from itertools import pairwise
from math import ceil, log2
from xml.etree.ElementTree import Element, SubElement, tostring

from .metrics_server import Page
from .status import CallStatus, ErrorStatus, Lane, ModelStatus, NetworkStatus, Picture, Status

TEMPLATE = files(__package__).joinpath("status.html").read_text()
PLACE = "<!-- page -->"

LANE_HEIGHT = 100  # of the drawing's own units; a column is 1 wide
LEAST_SCALE = 8  # rows


def _content_security_policy(template: str) -> str:
    """Allows the page's own style and script, by their hashes, and nothing else; the script may read the page anew."""

    def hashes(tag: str) -> str:
        digests = (sha256(text.encode()).digest() for text in re.findall(f"<{tag}>(.*?)</{tag}>", template, re.DOTALL))
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    return (
        f"default-src 'none'; style-src {hashes('style')}; script-src {hashes('script')}; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


HEADERS = {"Content-Security-Policy": _content_security_policy(TEMPLATE)}


def status_page(status: Status) -> Page:
    """The page: one HTML file that needs nothing else."""
    main = Element("main")
    _header(main, status)
    _load(_section(main, "Load"), status)
    _picture(_section(main, "Batches"), status.picture)
    _models(_section(main, "Models"), status)
    _calls(_section(main, "Calls of the last minute"), status.calls)
    _errors(_section(main, "Recent errors"), status.errors)
    _footer(main, status)
    body = TEMPLATE.replace(PLACE, tostring(main, encoding="unicode", method="html"))
    return Page("text/html; charset=utf-8", body.encode(), HEADERS)


def duration(seconds: float) -> str:
    """Three digits and a unit, e.g. 1.25 ms."""
    if seconds >= 1:
        return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:.0f} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


# -- sections -------------------------------------------------------------------------------------


def _header(main: Element, status: Status) -> None:
    header = SubElement(main, "header")
    _add(header, "h1", "fewstep")
    if status.ready:
        _add(header, "span", "ready", "badge good")
    else:
        _add(header, "span", f"not ready: {status.trouble}", "badge bad")
    _add(header, "span", f"up {_uptime(status.uptime_seconds)}", "faint")
    _add(header, "span", ", ".join(f"{name} {number}" for name, number in status.versions.items()), "faint")


def _load(section: Element, status: Status) -> None:
    load = status.load
    tiles = SubElement(section, "dl", {"class": "tiles"})
    for name, value in (
        ("requests a second", f"{load.requests_per_second:.1f}"),
        ("requests open", str(load.requests_open)),
        ("rows waiting", str(load.rows_waiting)),
        ("rows in flight", str(load.rows_in_flight)),
        ("rows a second", f"{load.rows_per_second:.1f}"),
        ("rows in a batch", f"{load.mean_batch_rows:.1f}"),
        ("engine busy", f"{load.busy:.0%}"),
    ):
        tile = SubElement(tiles, "div")
        _add(tile, "dt", name)
        _add(tile, "dd", value)


def _picture(section: Element, picture: Picture) -> None:
    if not picture.lanes:
        _add(section, "p", "No batch has run in the last seconds.", "faint")
    for lane in picture.lanes:
        section.append(_lane(lane))
    if picture.lanes:
        seconds = picture.column_seconds * len(picture.lanes[0].columns)
        axis = SubElement(section, "div", {"class": "axis faint"})
        _add(axis, "span", f"{seconds:g} s ago")
        _add(axis, "span", "now")
    legend = SubElement(section, "div", {"class": "legend faint"})
    _add(legend, "span", "Steps that a row has left after the batch:")
    for index, name in enumerate(_class_names(picture.steps_left)):
        entry = SubElement(legend, "span")
        mark = SubElement(entry, "svg", {"viewBox": "0 0 1 1", "aria-hidden": "true"})
        SubElement(mark, "rect", {"class": f"left{index}", "width": "1", "height": "1"})
        mark.tail = f" {name}"


def _lane(lane: Lane) -> Element:
    """Rows over time, stacked by the steps that they have left."""
    figure = Element("figure")
    caption = SubElement(figure, "figcaption")
    _add(caption, "span", f"{lane.model}: {lane.network}")
    rows = max(sum(column) for column in lane.columns)
    _add(caption, "span", f"up to {rows:.3g} rows", "faint")
    box = f"0 0 {len(lane.columns)} {LANE_HEIGHT}"
    label = f"rows in the batches of {lane.network} over the last seconds, up to {rows:.3g}"
    svg = SubElement(
        figure,
        "svg",
        {"class": "lane", "viewBox": box, "preserveAspectRatio": "none", "role": "img", "aria-label": label},
    )
    # Powers of two: the picture keeps its scale while the batches change a little.
    scale = LANE_HEIGHT / max(LEAST_SCALE, 2 ** ceil(log2(rows)))
    paths: list[list[str]] = [[] for _ in lane.columns[0]]
    for x, column in enumerate(lane.columns):
        top = float(LANE_HEIGHT)
        # Rows that leave are on top, those with most steps to go at the bottom.
        for index in reversed(range(len(column))):
            height = column[index] * scale
            if height:
                top -= height
                paths[index].append(f"M{x} {top:.2f}h1v{height:.2f}h-1z")
    for index, path in enumerate(paths):
        if path:
            SubElement(svg, "path", {"class": f"left{index}", "d": "".join(path)})
    return figure


def _models(section: Element, status: Status) -> None:
    rows = _table(section, ("model", "step", "rows in flight", "by steps left", "waiting"), "stack")
    for model in status.models:
        line = SubElement(rows, "tr")
        name = _add(line, "td", model.name)
        _add(
            name, "div", f"version {model.version} {model.family if model.state == 'serving' else model.state}", "faint"
        )
        steps = SubElement(line, "td")
        for network in model.networks:
            _add(steps, "div", f"{network.name}: {_cost(network)}")
        _add(line, "td", f"{model.rows_in_flight} of {model.capacity} slots")
        SubElement(line, "td").append(_bar(model, _class_names(status.picture.steps_left)))
        _add(line, "td", f"{model.rows_waiting} waiting")


def _bar(model: ModelStatus, names: Sequence[str]) -> Element:
    """The slots of a model, filled with its rows in flight by the steps that they have left."""
    counts = model.in_flight_by_steps_left
    told = ", ".join(f"{count} rows with {name} steps left" for count, name in zip(counts, names, strict=True) if count)
    svg = Element(
        "svg",
        {
            "class": "bar",
            "viewBox": f"0 0 {model.capacity} 1",
            "preserveAspectRatio": "none",
            "role": "img",
            "aria-label": told or "no rows in flight",
        },
    )
    x = 0
    for index, count in enumerate(counts):
        if count:
            SubElement(svg, "rect", {"class": f"left{index}", "x": str(x), "width": str(count), "height": "1"})
            x += count
    return svg


def _calls(section: Element, calls: Iterable[CallStatus]) -> None:
    rows = _table(section, ("call", "ended well", "failed", "p50", "p90", "p99"), "numbers")
    for call in calls:
        line = SubElement(rows, "tr")
        _add(line, "td", call.rpc or "(no such method)")
        _add(line, "td", str(call.ok), "number")
        _add(line, "td", str(call.failed), "number bad" if call.failed else "number")
        for seconds in (call.p50, call.p90, call.p99):
            _add(line, "td", duration(seconds) if call.ok else "", "number")


def _errors(section: Element, errors: Sequence[ErrorStatus]) -> None:
    if not errors:
        _add(section, "p", "None.", "faint")
        return
    rows = _table(section, ("when (UTC)", "call", "code", "request", "text"), "stack")
    for error in errors:
        line = SubElement(rows, "tr")
        _add(line, "td", time.strftime("%m-%d %H:%M:%S", time.gmtime(error.time)))
        _add(line, "td", error.rpc)
        _add(line, "td", error.code)
        _add(SubElement(line, "td", {"class": "text"}), "code", error.request_id)
        _add(line, "td", error.text, "text")


def _footer(main: Element, status: Status) -> None:
    footer = SubElement(main, "footer")
    note = _add(footer, "span", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(status.time)))
    note.set("id", "note")
    for path in ("/status.json", "/metrics"):
        _add(footer, "span", " · ")
        _add(footer, "a", path).set("href", path)


# -- parts ----------------------------------------------------------------------------------------


def _add(parent: Element, tag: str, text: str, style: str = "") -> Element:
    element = SubElement(parent, tag, {"class": style} if style else {})
    element.text = text
    return element


def _section(main: Element, title: str) -> Element:
    section = SubElement(main, "section")
    _add(section, "h2", title)
    return section


def _table(section: Element, heads: Iterable[str], style: str) -> Element:
    table = SubElement(SubElement(section, "div", {"class": "scroll"}), "table", {"class": style})
    line = SubElement(SubElement(table, "thead"), "tr")
    for head in heads:
        _add(line, "th", head)
    return SubElement(table, "tbody")


def _class_names(lower: Sequence[int]) -> list[str]:
    """Classes of whole numbers by their lower ends, e.g. 0, 1, 2-3, 4-7, 8+."""
    ranges = [str(low) if high == low + 1 else f"{low}-{high - 1}" for low, high in pairwise(lower)]
    return [*ranges, f"{lower[-1]}+"]


def _cost(network: NetworkStatus) -> str:
    if not (network.fixed_seconds or network.seconds_per_row):
        return "not measured yet"
    return f"{duration(network.fixed_seconds)} + {duration(network.seconds_per_row)} a row"


def _uptime(seconds: float) -> str:
    days, rest = divmod(int(seconds), 86400)
    clock = f"{rest // 3600}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days} d {clock}" if days else clock
