"""The gate: what counts as a regression, and what does not."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.cli import main
from bench.gate.ratios import Better, GateError, Ratio, Result
from bench.gate.readers import read_result
from bench.gate.verdict import Verdict, differences, judge
from tests.bench.compare.test_result import comparison as compared

SMALL = "small: fewstep / triton"
TAIL = "interactive: p99 fewstep / triton"
ENVIRONMENT = {"cpu": "Some CPU", "usable_cores": 2.0, "python": "3.11", "gpus": [], "packages": {"grpcio": "1.74"}}


def comparison(ratios: dict[str, tuple[float, float, float] | None], **setup: Any) -> dict[str, Any]:
    """compare.json with these ratios: value, least and most of the rounds."""
    return {
        "environment": ENVIRONMENT,
        "setup": {"versions": {"triton": "2.60"}, "left_out": {}, "threads": 1, **setup},
        "ratios": {name: found and found[0] for name, found in ratios.items()},
        "spreads": {name: [found and found[1], found and found[2]] for name, found in ratios.items()},
        "goals": {},
    }


def gate(tmp_path: Path, new: dict[str, Any], old: dict[str, Any], *options: str) -> int:
    """The exit code of the command over two documents."""
    paths = []
    for name, document in (("new", new), ("old", old)):
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(document))
    return main(["gate", *map(str, paths), *options])


def verdict(new: tuple[float, float, float], old: tuple[float, float, float], better: Better) -> Verdict:
    """Of one ratio over some rounds."""
    results = [Result("r", {"x": Ratio(*values, better)}) for values in (new, old)]
    return judge(*results)[0].verdict


@pytest.mark.parametrize(("better", "up", "down"), [
    (Better.HIGHER, Verdict.BETTER, Verdict.WORSE),
    (Better.LOWER, Verdict.WORSE, Verdict.BETTER),
    (Better.NEITHER, Verdict.MOVED, Verdict.MOVED),
])  # fmt: skip
def test_a_move_beyond_the_noise_counts_in_its_direction(better, up, down):
    """Three rounds within 2 % of each other, twice as much and half as much."""
    low, high = (0.99, 0.98, 1.0), (1.98, 1.96, 2.0)
    assert verdict(high, low, better) is up
    assert verdict(low, high, better) is down


def test_a_move_within_the_noise_of_either_does_not_count():
    """The same 20 %, where the rounds of the new or of the old result differ by as much."""
    tight, wide = (1.0, 0.99, 1.01), (1.2, 1.0, 1.4)
    assert verdict((1.2, 1.19, 1.21), tight, Better.LOWER) is Verdict.WORSE
    assert verdict(wide, tight, Better.LOWER) is Verdict.SAME
    assert verdict(tight, wide, Better.HIGHER) is Verdict.SAME


def test_ranges_that_only_do_not_touch_are_a_hint():
    """Apart by less than the wider of them: perhaps, which fails nothing."""
    assert verdict((1.25, 1.2, 1.3), (1.1, 1.0, 1.15), Better.LOWER) is Verdict.MAYBE_WORSE
    assert verdict((1.25, 1.2, 1.3), (1.1, 1.0, 1.15), Better.HIGHER) is Verdict.MAYBE_BETTER


def test_a_tiny_move_is_none_however_exact():
    """4 % with rounds that agree to a tenth of a percent."""
    assert verdict((1.04, 1.0395, 1.0405), (1.0, 0.9995, 1.0005), Better.LOWER) is Verdict.SAME


def test_one_round_alone_counts_from_a_factor_of_two():
    """Nothing tells its noise."""
    results = [Result("r", {"x": Ratio(v, v, v, Better.LOWER, rounds=False)}) for v in (1.9, 2.1, 1.0)]
    assert judge(results[0], results[2])[0].verdict is Verdict.SAME
    assert judge(results[1], results[2])[0].verdict is Verdict.WORSE


@pytest.mark.parametrize(("rounds", "most"), [(2, 0.08), (3, 0.009), (5, 0.001)])
def test_the_same_thing_measured_twice_is_seldom_called_worse(rounds, most):
    """The false alarms of the margin's own words, at 30 % of noise."""
    rng = random.Random(0)
    alarms = 0
    for _ in range(4000):
        values = [sorted(math.exp(rng.gauss(0.0, 0.3)) for _ in range(rounds)) for _ in range(2)]
        new, old = ((v[rounds // 2], v[0], v[-1]) for v in values)
        alarms += verdict(new, old, Better.LOWER) is Verdict.WORSE
    assert alarms <= most * 4000


def test_the_command_fails_on_a_regression_alone(tmp_path, capsys):
    """1 where throughput falls or a tail grows, 0 where it is the other way round, or the same."""
    good = comparison({SMALL: (3.0, 2.9, 3.1), TAIL: (0.2, 0.19, 0.21)})
    slow = comparison({SMALL: (1.5, 1.4, 1.6), TAIL: (0.2, 0.19, 0.21)})
    late = comparison({SMALL: (3.0, 2.9, 3.1), TAIL: (0.4, 0.38, 0.42)})
    assert gate(tmp_path, good, good) == 0
    assert gate(tmp_path, slow, good) == 1
    assert "-50.0%" in capsys.readouterr().err
    assert gate(tmp_path, late, good) == 1
    assert gate(tmp_path, good, slow) == 0
    assert gate(tmp_path, good, late) == 0


def test_ratios_on_one_side_are_named(tmp_path, capsys):
    """New ones and those that are gone; the latter fail where they are asked to."""
    old = comparison({SMALL: (3.0, 2.9, 3.1), TAIL: (0.2, 0.19, 0.21)})
    new = comparison({SMALL: (3.0, 2.9, 3.1), "bulk: fewstep / bare": (0.9, 0.89, 0.91)})
    assert gate(tmp_path, new, old) == 0
    shown = capsys.readouterr().err
    assert "gone" in shown
    assert "new" in shown
    assert "interactive: p99" in shown
    assert gate(tmp_path, new, old, "--all") == 1


def test_what_could_not_be_measured_is_said(tmp_path, capsys):
    """A ratio that is null now neither passes as zero nor stops the gate."""
    old = comparison({SMALL: (3.0, 2.9, 3.1), TAIL: (0.2, 0.19, 0.21)})
    new = comparison({SMALL: (3.0, 2.9, 3.1), TAIL: None})
    assert gate(tmp_path, new, old) == 0
    assert "not measured" in capsys.readouterr().err
    assert gate(tmp_path, new, old, "--all") == 1


def test_absolute_times_are_never_compared(tmp_path, capsys):
    """Ten times as many milliseconds fail nothing, and are said to be left out."""
    name = "idle paced: fewstep adds, ms at p50"
    old, new = (comparison({SMALL: (3.0, 2.9, 3.1), name: (v, v, v)}) for v in (0.5, 5.0))
    assert gate(tmp_path, new, old) == 0
    assert "no ratios: idle paced" in " ".join(capsys.readouterr().err.split())


def test_another_server_s_own_ratio_fails_nothing(tmp_path, capsys):
    """Triton's goodput of its own peak is Triton's."""
    name = "overload: triton, goodput of its peak"
    old, new = (comparison({SMALL: (3.0, 2.9, 3.1), name: v}) for v in ((0.9, 0.89, 0.91), (0.3, 0.29, 0.31)))
    assert gate(tmp_path, new, old) == 0
    assert "moved" in capsys.readouterr().err


def test_the_direction_is_that_of_the_goal_where_there_is_one(tmp_path):
    """`at most` means that lower is better, whatever the name says."""
    old, new = (comparison({SMALL: v}) for v in ((3.0, 2.9, 3.1), (1.5, 1.4, 1.6)))
    for document in (old, new):
        document["goals"] = {SMALL: {"goal": "<= 4", "met": True}}
    assert gate(tmp_path, new, old) == 0
    assert gate(tmp_path, old, new) == 1


def test_other_hardware_and_versions_are_said(tmp_path, capsys):
    """By name, with both values."""
    old, new = comparison({SMALL: (3.0, 2.9, 3.1)}), comparison({SMALL: (3.0, 2.9, 3.1)})
    new["environment"] = {**ENVIRONMENT, "cpu": "Another CPU"}
    new["setup"] = {**new["setup"], "versions": {"triton": "2.61"}, "left_out": {"bento": "not installed"}}
    assert gate(tmp_path, new, old) == 0
    shown = " ".join(capsys.readouterr().err.split())
    for words in ("cpu: Some CPU before, Another CPU now", "version of triton: 2.60 before, 2.61 now", "bento"):
        assert words in shown
    assert differences({"a": "1"}, {"a": "1"}) == []


def test_a_soak_is_compared_by_its_drift(tmp_path):
    """Latencies ten times as long throughout are no regression, an end that is slower than the begin is."""

    def soak(*p99: float) -> dict[str, Any]:
        windows = [{"p50": v / 4, "p99": v, "sent": 100, "failed": 0} for v in p99]
        return {"windows": windows, "environment": ENVIRONMENT, "mix": "m", "engine": "e", "load": 0.8}

    steady = soak(1.0, 1.02, 1.01, 0.99, 1.0, 1.01, 1.0, 1.02)
    assert gate(tmp_path, soak(*[10 * w["p99"] for w in steady["windows"]]), steady) == 0
    assert gate(tmp_path, soak(1.0, 1.02, 1.01, 0.99, 1.0, 1.01, 1.5, 1.52), steady) == 1


def test_a_load_is_compared_by_what_it_takes_beside_the_steps(tmp_path):
    """A host that takes five times as long as the steps, where it took as long, on a machine twice as fast."""

    def load(compute: float, host: float) -> dict[str, Any]:
        latency = {"p50": compute + host, "p99": 2 * (compute + host)}
        stages = {"late": 0.0, "network": 0.75 * compute, "update": 0.25 * compute, "waits, host": host}
        kind = {"name": "ddim:1", "sent": 10, "ok": 10, "stages": stages, "latency": latency}
        return {"kinds": [kind], "environment": ENVIRONMENT, "plan": {"mix": "m", "timeout": 10.0}}

    assert gate(tmp_path, load(0.5, 0.5), load(1.0, 1.0)) == 0
    assert gate(tmp_path, load(0.5, 2.5), load(1.0, 1.0)) == 1


def test_a_comparison_is_read_as_it_is_written(tmp_path):
    """Directions follow from the scenarios: latencies down, throughput and goodput up, a peer's own neither."""

    def rounds(number: str, *values: float) -> list[dict[str, float]]:
        return [{"offered": 1.0, "achieved": 1.0, number: value} for value in values]

    found = compared(
        ("small", "fewstep", rounds("rows_per_second", 80, 90, 85)),
        ("small", "bare", rounds("rows_per_second", 100, 100, 100)),
        ("langevin", "fewstep", rounds("ddim:4 p99", 0.1, 0.2)),
        ("langevin", "triton", rounds("ddim:4 p99", 0.2, 0.3)),
        ("overload", "fewstep", rounds("share", 0.95)),
        ("overload", "ray", rounds("share", 0.1)),
    )
    path = tmp_path / "compare.json"
    path.write_bytes(msgspec.json.encode(found.document()))
    result = read_result(path)
    assert {name: ratio.better for name, ratio in result.ratios.items()} == {
        "small: fewstep / bare": Better.HIGHER,
        "langevin: p99 fewstep / triton": Better.LOWER,
        "langevin: p99 fewstep / best request-level batcher": Better.LOWER,
        "overload: fewstep, goodput of its peak": Better.HIGHER,
        "overload: ray, goodput of its peak": Better.NEITHER,
    }
    small = result.ratios["small: fewstep / bare"]
    assert (small.low, small.value, small.high, small.rounds) == (0.8, 0.85, 0.9, True)
    assert not result.ratios["overload: fewstep, goodput of its peak"].rounds
    assert result.setting["version of triton"] == "0.7"
    assert "litserve" in " ".join(result.setting)


def test_the_committed_results_can_be_read():
    """The zoo's quality and the soak, and nothing of them moved against themselves."""
    results = Path(__file__).parents[2] / "bench" / "results"
    for name in ("soak.json", "zoo/quality.json"):
        result = read_result(results / name)
        assert {line.verdict for line in judge(result, result)} == {Verdict.SAME}


@pytest.mark.parametrize(("new", "words"), [
    ("nothing there", "No such file"),
    ("{", "not JSON"),
    ("[1]", "no result that holds ratios"),
    ('{"ratios": {"a": 1.0}}', "not as `bench compare` is written"),
    ('{"ratios": {"a": 1.0}, "spreads": {"a": "wide"}, "setup": {}}', "not as `bench compare` is written"),
])  # fmt: skip
def test_what_is_no_result_is_refused(tmp_path, capsys, new, words):
    """With code 2, the file's name, and what is wrong."""
    path = tmp_path / "x.json"
    if new != "nothing there":
        path.write_text(new)
    assert main(["gate", str(path), str(path)]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "x.json" in shown.replace(" ", "")
    assert words in shown


def test_results_of_two_kinds_are_refused(tmp_path):
    """And those with nothing in common, and a margin below nothing."""
    old = comparison({SMALL: (3.0, 2.9, 3.1)})
    with pytest.raises(GateError, match="in common"):
        judge(Result("r", {"a": Ratio(1, 1, 1, Better.LOWER)}), Result("r", {"b": Ratio(1, 1, 1, Better.LOWER)}))
    with pytest.raises(GateError, match="the old one of"):
        judge(Result("r", {}), Result("s", {}))
    assert gate(tmp_path, old, old, "--margin", "-1") == 2
