"""Networks whose steps are longer than the step budget, simulated: how wide batches are, and who waits for it."""

from __future__ import annotations

from statistics import fmean

import pytest

from tests.server.simulation import Device, Kind, Simulation

BUDGET = 0.02
ONE, EIGHT, URGENT = Kind(1, None), Kind(8, None), Kind(1, None, weight=0.1, priority=5)
MIX = (ONE, EIGHT, URGENT)
DEVICES = {
    "a fixed cost of four rows": Device(0.010, 0.0025, 64),
    "of 25 rows": Device(0.025, 0.001, 64),
    "of one row": Device(0.004, 0.004, 64),
    "a tenth of a row": Device(0.005, 0.05, 64),
}


def run(device: Device, load: float, *, step_seconds: float = BUDGET) -> Simulation:
    """About 1500 requests, after as many that tell what steps cost."""
    seconds = 1500 * 4.3 * device.full_seconds / (load * device.full_rows)
    simulation = Simulation(device, 256, step_seconds=step_seconds).run(load, MIX, seconds)
    simulation.forget()
    return simulation.run(load, MIX, seconds)


def mean_seconds(simulation: Simulation) -> dict[Kind, float]:
    return {kind: fmean(simulation.seconds[kind]) for kind in MIX}


@pytest.mark.parametrize("load", [0.3, 0.8, 0.92])
@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_batches_are_as_wide_as_the_load_needs(device: Device, load: float):
    """Nobody waits for long on a device that could answer all in wide batches: short requests about as long as if all
    that wait were taken at once, long ones not much longer, urgent ones no longer."""
    found, wide = (mean_seconds(run(device, load, step_seconds=budget)) for budget in (BUDGET, 1e9))
    assert found[ONE] <= 1.1 * wide[ONE], (found, wide)
    assert found[EIGHT] <= 1.6 * wide[EIGHT], (found, wide)
    assert found[URGENT] <= 1.1 * wide[URGENT], (found, wide)


def test_rows_that_gain_nothing_by_company_are_not_kept_waiting_for_it():
    """Where a step takes two rows twice as long as one, urgent requests wait for one row and not for all that came."""
    device = Device(0.0, 0.05, 64)
    found, wide = (mean_seconds(run(device, 0.8, step_seconds=budget)) for budget in (BUDGET, 1e9))
    assert found[URGENT] <= 0.6 * wide[URGENT], (found, wide)
    assert found[ONE] <= wide[ONE], (found, wide)
