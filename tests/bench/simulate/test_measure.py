"""Costs are found again from probes that were made of them, and on a real server."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from bench.cli import main
from bench.load.plan import DEFAULT_MIX
from bench.mix import Call, Kind, parse_mix
from bench.simulate.costs import Costs, Group, load_costs
from bench.simulate.infer import Sort, costs_of
from bench.simulate.measure import MeasurePlan, Meter
from bench.simulate.models import read_cards
from bench.simulate.probe import Probed, Probes
from models.machine import ROOT

NET, OTHER = Group("a", "net", "ensemble"), Group("a", "gradient", "langevin")
WAKE, BETWEEN, DELAY = 0.004, 0.0005, 0.002
HOST, ROW, INTERFERENCE = 0.001, 0.00005, 0.6
SIZES = (1, 2, 8)


def seconds(group: Group, rows: float) -> float:
    """A step's cost, by the law that the probes are made of."""
    return {NET: 0.003 + 0.001 * rows, OTHER: 0.01 + 0.002 * rows}[group]


def alone(lines: dict[Group, int], rows: int, rng: random.Random, noise: float) -> Sort:
    """A hundred requests of one client."""
    requests = []
    steps = sum(lines.values())
    for i in range(100):
        ideal = WAKE + sum(n * seconds(group, rows) for group, n in lines.items())
        compute = ideal * rng.uniform(1 - noise, 1 + noise)
        server = compute + BETWEEN * (steps - 1) + 0.0003
        latency = compute + BETWEEN * steps + HOST + ROW * rows + DELAY
        requests.append(Probed(latency, 0.0, compute, server, float(rows), 0.01 * i))
    kind = Kind(f"ddim:{steps}", 1.0, Call.SAMPLE, "ddim", "a", {"steps": steps})
    return Sort(kind, rows, lines, Probes(requests, 1.0, 100 * (HOST + ROW * rows)))


def crowd(rows: int, steps: int) -> Sort:
    """Requests of so many steps, a hundred batches full, that keep the device busy; the host's work holds it up."""
    host = 100 * rows * (HOST + ROW)
    took = 100 * steps * (seconds(NET, rows) + BETWEEN) + INTERFERENCE * host
    kind = Kind(f"ddim:{steps}", 1.0, Call.SAMPLE, "ddim", "a", {"steps": steps})
    return Sort(kind, 1, {NET: steps}, Probes([Probed(0.1, 0.0, 0.01, 0.1, float(rows))] * 100 * rows, took, host))


def inferred(noise: float, *programs: dict[Group, int]) -> Costs:
    rng = random.Random(0)
    sorts = [alone(lines, rows, rng, noise) for lines in programs for rows in SIZES]
    steps = sum(programs[0].values())
    return costs_of(sorts, [crowd(8, steps), crowd(2, steps)])


@pytest.mark.parametrize(("noise", "within"), [(0.0, 1e-3), (0.1, 0.1)])
def test_costs_are_found_again(noise, within):
    """Every one of them, from programs of one and eight steps, and one that takes steps of another network too."""
    found = inferred(noise, {NET: 1}, {NET: 8}, {NET: 1, OTHER: 30})
    for group in (NET, OTHER):
        for rows in SIZES:
            assert found.table(group).mean(rows) == pytest.approx(seconds(group, rows), rel=within)
    assert found.wake == pytest.approx(WAKE, rel=2 * within)
    assert found.between == pytest.approx(BETWEEN, rel=2 * within)
    assert found.sample.receive + found.sample.answer == pytest.approx(HOST, rel=within)
    assert found.sample.row == pytest.approx(ROW, rel=within)
    assert sum(found.delays) / len(found.delays) == pytest.approx(DELAY, rel=0.1 + within)
    assert found.interference == pytest.approx(INTERFERENCE, rel=3 * within)


def test_the_way_past_a_busy_device_is_told_from_the_wait_for_it():
    """Requests that waited and rode beside others were longer on the way by what is left."""
    known = HOST + ROW + BETWEEN
    past = [Probed(0.03 + 0.05 + known + way, 0.03, 0.05, 0.09, 9.0) for way in (0.003, 0.005)]
    kind = Kind("ddim:1", 1.0, Call.SAMPLE, "ddim", "a", {"steps": 1})
    sorts = [alone(lines, rows, random.Random(0), 0.0) for lines in ({NET: 1}, {NET: 8}) for rows in SIZES]
    found = costs_of(sorts, [crowd(8, 1), crowd(2, 1)], [Sort(kind, 1, {NET: 1}, Probes(past, 1.0, 0.1))])
    assert found.busy_delays == pytest.approx([0.003, 0.005], abs=1e-5)


def test_a_hiccup_in_a_short_step_makes_no_slow_spell_of_long_ones():
    """A stretch of 50 ms steps and one of half a millisecond that took ten times as long is about as fast as others."""
    long, short = {NET: 1}, {OTHER: 1}
    sorts = []
    for lines, took in ((long, [0.05] * 40), (short, [0.0005] * 39 + [0.005])):
        kind = Kind("ddim:1" if lines is long else "short", 1.0, Call.SAMPLE, "ddim", "a", {"steps": 1})
        ended = [0.05 * i for i in range(40)]
        requests = [Probed(s, 0.0, s, s, 1.0, at) for s, at in zip(took, ended, strict=True)]
        sorts.append(Sort(kind, 1, lines, Probes(requests, 2.0, 0.1)))
    assert max(costs_of(sorts, [crowd(8, 1)]).spells) < 1.05


def test_the_spread_of_steps_is_kept():
    """One-step requests that vary by a third give steps that do."""
    values = inferred(0.33, {NET: 1}, {NET: 8}).steps[0].seconds[-1]
    assert len(values) == 100
    assert max(values) / min(values) > 1.7


def test_with_programs_of_one_length_the_pause_is_part_of_the_step():
    """As nothing tells the two apart."""
    found = inferred(0.0, {NET: 4})
    assert found.wake == 0.0
    assert found.table(NET).mean(2) == pytest.approx(seconds(NET, 2) + WAKE / 4, rel=1e-3)


def test_slow_spells_of_the_machine_are_kept_in_their_order():
    """Half a second of steps that take twice as long is two of the spells, and no noise of the steps themselves."""
    kind = Kind("ddim:1", 1.0, Call.SAMPLE, "ddim", "a", {"steps": 1})
    took = [(0.02 if 0.5 <= 0.01 * i < 1.0 else 0.01) for i in range(200)]
    requests = [Probed(s, 0.0, s, s, 1.0, 0.01 * i + 1e-6) for i, s in enumerate(took)]
    busy = Sort(kind, 1, {NET: 1}, Probes([Probed(0.01, 0.0, 0.01, 0.01, 1.0)] * 9, 0.09, 0.01))
    found = costs_of([Sort(kind, 1, {NET: 1}, Probes(requests, 2.0, 0.1))], [busy])
    assert found.spells == pytest.approx([0.8, 0.8, 1.6, 1.6, 0.8, 0.8, 0.8, 0.8])
    assert found.steps[0].seconds[0] == pytest.approx([0.0125] * 200, rel=0.01)


def test_a_step_that_the_pause_explains_whole_takes_some_time_nonetheless():
    """Where noise leaves nothing for a short step of one size, the measurement goes on, with a small part of it."""
    sorts = [alone({NET: n}, rows, random.Random(0), 0.0) for n in (1, 8) for rows in SIZES]
    kind = Kind("short", 1.0, Call.SAMPLE, "ddim", "a", {"steps": 1})
    for rows in SIZES:  # shorter than the pause of the others
        requests = [Probed(WAKE, 0.0, WAKE / 2, WAKE, 1.0, 0.01 * i) for i in range(20)]
        sorts.append(Sort(kind, rows, {OTHER: 1}, Probes(requests, 1.0, 0.02)))
    found = costs_of(sorts, [crowd(8, 1)]).table(OTHER)
    assert all(0 < found.mean(rows) < WAKE for rows in SIZES)


def test_each_set_of_networks_is_probed_by_a_short_and_a_longer_program():
    """Whatever the number of kinds in the mix."""
    cards = read_cards(ROOT / "models" / "zoo")
    meter = Meter("nowhere:1", 1, parse_mix(DEFAULT_MIX), cards, MeasurePlan(rows=(1, 2)))
    probed = [(kind.model, kind.options.get("steps")) for kind, rows in meter._sorts if rows == 1]
    vdrme = [("digits-vdrme", 4), ("digits-vdrme", 8), ("digits-vdrme", None)]
    assert probed == [("digits-ddpm", 1), ("digits-ddpm", 8), *vdrme]


def test_a_guided_sample_takes_two_rows_of_a_batch():
    """Probes of a batch of one row are left out, and of two rows one sample is asked for."""
    cards = read_cards(ROOT / "models" / "zoo")
    meter = Meter("nowhere:1", 1, parse_mix("ddim:4:guidance=1=1"), cards, MeasurePlan(rows=(1, 2, 4)))
    assert {rows for _, rows in meter._sorts} == {2, 4}


def test_a_real_server_is_measured_and_simulated(repository: Path, tmp_path: Path):
    """Costs by which a fleet can be simulated; and a real load beside its simulation, with what failed."""
    costs, mix = tmp_path / "costs.json", ["--mix", "ddim:1=2,ddim:4=1,score:model=digits-vdrme=1"]
    real = [*mix, "--repository", str(repository), "--probe-rows", "1,2"]
    real += ["--probe-rounds", "2", "--probe-seconds", "0.05"]
    assert main(["simulate", "--measure", *real, "--costs", str(costs), "--output", str(tmp_path)]) == 0
    found = load_costs(costs)
    assert {step.group for step in found.steps} == {
        Group("digits-ddpm", "denoiser", "ensemble"), Group("digits-vdrme", "energy", "score")
    }  # fmt: skip
    assert all(0 < value < 10 for step in found.steps for values in step.seconds for value in values)
    assert 0 < found.sample.receive + found.sample.answer + found.sample.row < 1
    study = ["simulate", *mix, "--costs", str(costs), "--rate", "5", "--replicas", "2", "--requests", "100"]
    assert main([*study, "--output", str(tmp_path / "study")]) == 0
    check = ["--check-rate", "10", "--check-seconds", "2", "--check-seeds", "1,2", "--output", str(tmp_path / "check")]
    assert main(["simulate", "--check", *real, *check]) == 0
    document = json.loads((tmp_path / "check" / "check.json").read_text())
    loads = {comparison["name"]: comparison for comparison in document["comparisons"]}
    assert list(loads) == ["seed 1", "seed 2", "all"]
    assert loads["all"]["sent"] == loads["seed 1"]["sent"] + loads["seed 2"]["sent"] > 20
    for pairs in loads["all"]["latency"].values():
        assert 0 < pairs["p50"]["real"] <= pairs["p99"]["real"]
        assert 0 < pairs["p50"]["simulated"] <= pairs["p99"]["simulated"]
    assert (tmp_path / "check" / "check.png").stat().st_size > 10_000
