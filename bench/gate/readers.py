"""Reads the results that `python -m bench` and `python -m models quality` write, as ratios.

Times are never compared between two runs: machines differ, and one machine from day to day. What one run gives in
relation to something else of the same run is.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..load import STEP_STAGES
from .ratios import Better, GateError, Ratio, Result

OURS = "fewstep"
ABSOLUTE = ", ms at "
"""In the names of numbers of a comparison that are times."""

LEAST_AREA = 0.01
"""Areas under a curve below it are taken for it: all are as bad, and zero divides nothing."""


def read_result(path: Path) -> Result:
    """Read compare.json, load.json, soak.json or the zoo's quality.json.

    Raises:
        GateError: there is no such file, it is none of these, or it lacks a part; names the file.
    """
    try:
        document = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise GateError(f"{path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise GateError(f"{path}: not JSON: {error}") from error
    for kind, field, read in READERS:
        if isinstance(document, dict) and field in document:
            try:
                return read(kind, document)
            except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                raise GateError(f"{path}: not as `{kind}` is written: {type(error).__name__}: {error}") from error
    fields = ", ".join(f"{field!r} ({kind})" for kind, field, _ in READERS)
    raise GateError(f"{path}: no result that holds ratios; those have one of {fields}")


def _comparison(kind: str, document: Mapping[str, Any]) -> Result:
    """Every ratio to another server or to the bare loop, over the rounds."""
    spreads, goals = document["spreads"], document.get("goals", {})
    directions = document.get("better", {})
    ratios, left_out = {}, []
    for name, value in document["ratios"].items():
        if ABSOLUTE in name:
            left_out.append(name)
            continue
        low, high = spreads.get(name, (value, value))
        better = Better(directions[name]) if name in directions else _direction(name, goals.get(name, {}))
        ratios[name] = Ratio(_number(value), _number(low), _number(high), better, rounds=low != high)
    setup = document["setup"]
    setting = _environment(document["environment"])
    setting |= {f"version of {name}": str(version) for name, version in setup["versions"].items()}
    setting |= {f"left out: {name}": str(reason) for name, reason in setup["left_out"].items()}
    return Result(kind, ratios, setting | {"threads": str(setup["threads"])}, tuple(left_out))


def _direction(name: str, goal: Mapping[str, Any]) -> Better:
    """By its goal, or by what it is of: latencies are to be low, throughput and goodput high."""
    if goal:
        return Better.LOWER if str(goal["goal"]).startswith("<") else Better.HIGHER
    if OURS not in name:
        return Better.NEITHER
    return Better.LOWER if name.startswith("idle") or "p99" in name else Better.HIGHER


def _soak(kind: str, document: Mapping[str, Any]) -> Result:
    """How latencies and failures of the end of a soak stand to those of its begin."""
    windows = document["windows"]
    quarter = max(1, len(windows) // 4)
    ratios = {}
    for number in ("p50", "p99"):
        first = statistics.median(window[number] for window in windows[:quarter])
        last = [window[number] / first for window in windows[-quarter:]]
        ratios[f"{number}, last quarter / first"] = _over_rounds(last, Better.LOWER)
    answered = [1.0 - window["failed"] / max(1, window["sent"]) for window in windows]
    ratios["answered of sent"] = _over_rounds(answered, Better.HIGHER)
    setting = _environment(document["environment"]) | {"mix": document["mix"], "engine": document["engine"]}
    return Result(kind, ratios, setting | {"load": f"{document['load']:g}"}, ("capacity", "rss_mb"))


def _load(kind: str, document: Mapping[str, Any]) -> Result:
    """How the latency of each kind stands to the time that its steps took, and its tail to its median."""
    ratios = {}
    for entry in document["kinds"]:
        stages, latency = entry["stages"], entry["latency"]
        name = entry["name"]
        if not entry["ok"]:
            continue
        steps = sum(stages.get(stage, 0.0) for stage in STEP_STAGES)
        if steps:
            ratios[f"{name}: latency / its steps"] = _alone(sum(stages.values()) / steps, Better.LOWER)
        ratios[f"{name}: p99 / p50"] = _alone(latency["p99"] / latency["p50"], Better.LOWER)
        ratios[f"{name}: answered of sent"] = _alone(entry["ok"] / entry["sent"], Better.HIGHER)
    plan = {name: str(value) for name, value in document["plan"].items() if name in ("mix", "arrivals", "timeout")}
    return Result(kind, ratios, _environment(document["environment"]) | plan, ("achieved",))


def _quality(kind: str, document: Mapping[str, Any]) -> Result:
    """Distances of samples over that of held-out digits, and how well outliers are told, over the seeds."""
    floor = document["floor"]
    ratios = {}
    for row in document["rows"]:
        name = f"{row['row']['model']}, {row['setting']}" + (", labelled" if row["row"]["labelled"] else "")
        mean, deviation = row["frechet"]["mean"] / floor, row["frechet"]["deviation"] / floor
        ratios[f"{name}: FD / floor"] = Ratio(mean, max(0.0, mean - deviation), mean + deviation, Better.LOWER)
    for detector in document["detectors"]:
        for found in detector["results"]:
            interval = found["auroc_interval"]
            areas = [max(LEAST_AREA, area) for area in (found["metrics"]["auroc"], interval["low"], interval["high"])]
            name = f"{detector['detector']} against {found['name']}: AUROC"
            ratios[name] = Ratio(areas[0], areas[1], areas[2], Better.HIGHER)
    setting = {"samples": str(document["count"])}
    for measured in document["measured"]:  # each model where it was measured last
        for model in measured["models"]:
            setting[f"cpu of {model}"] = measured["cpu"]
            setting |= {f"{name} of {model}": version for name, version in measured["versions"].items()}
    return Result(kind, ratios, setting)


def _over_rounds(values: list[float], better: Better) -> Ratio:
    return Ratio(statistics.median(values), min(values), max(values), better, rounds=len(values) > 1)


def _alone(value: float, better: Better) -> Ratio:
    return Ratio(value, value, value, better, rounds=False)


def _number(value: float | None) -> float:
    """What was not measured is null in JSON."""
    return float("nan") if value is None else float(value)


def _environment(found: Mapping[str, Any]) -> dict[str, str]:
    setting = {name: str(found[name]) for name in ("cpu", "usable_cores", "python") if name in found}
    setting["gpus"] = ", ".join(found.get("gpus", ())) or "none"
    return setting | {f"version of {name}": str(version) for name, version in found.get("packages", {}).items()}


READERS: tuple[tuple[str, str, Callable[[str, Mapping[str, Any]], Result]], ...] = (
    ("bench compare", "ratios", _comparison),
    ("bench soak", "windows", _soak),
    ("models quality", "detectors", _quality),
    ("bench load", "kinds", _load),
)
"""Kind of result, the field that tells it, and its reader."""
