"""Gathering before a network, and noise for its inputs: against float64 and against the twins."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels import gather, ops, philox, reference

from .cases import (
    CAPACITY,
    COPIES,
    DEVICE,
    FORMATS,
    GATHER_SLOTS,
    ROWS,
    assert_is_cast,
    channels_last,
    gather_case,
    given_noise,
    keys,
    same,
)

STARTED, ANCHORED = (0, 2, 6), (5, 7)  # rows of gather_case


def in_float64(case: dict[str, torch.Tensor]) -> np.ndarray:
    """What each row's network is to get, `(rows, elements)`."""
    elements = case["state"].shape[1]
    seeds = case["seeds"].cpu().numpy().view(np.uint64)
    noise = philox.normal(seeds, case["samples"].tolist(), case["draws"].tolist(), elements).astype(np.float64)
    x = case["state"].cpu().double().numpy()[list(GATHER_SLOTS)]
    for row in (*STARTED, 1):
        image = int(case["image_rows"][row])
        x[row] = float(case["stds"][row]) * noise[row]
        if image >= 0:
            x[row] += case["images"][image].cpu().double().numpy()
    return x


@pytest.fixture(params=[gather.gather, reference.gather, ops.gather], ids=["kernel", "twin", "operator"])
def step(request):
    return request.param


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize(("shape", "dtype"), FORMATS, ids=str)
def test_gather_is_its_formula(step, shape, dtype, last):
    """Starts, anchors, accumulators and the network's input against float64; a copy writes into no pool."""
    case = gather_case(shape, dtype)
    if last:
        case["network_input"] = channels_last(case["network_input"])
    state, x = case["state"].clone(), in_float64(case)
    step(**case)
    pools = {name: case[name].cpu().numpy() for name in ("state", "anchor", "accumulator")}
    for row in STARTED:
        for pool in pools.values():
            assert np.allclose(pool[GATHER_SLOTS[row]], x[row], rtol=4e-6, atol=4e-6 * float(case["stds"][row]))
    for row in ANCHORED:
        assert np.array_equal(pools["anchor"][GATHER_SLOTS[row]], state[GATHER_SLOTS[row]].cpu().numpy())
    started = [GATHER_SLOTS[row] for row in STARTED]
    kept = [slot for slot in range(CAPACITY) if slot not in started]
    assert torch.equal(case["state"][kept], state[kept])
    assert np.isnan(pools["accumulator"][kept]).all()
    anchored = [*started, *(GATHER_SLOTS[row] for row in ANCHORED)]
    assert np.isnan(pools["anchor"][[slot for slot in range(CAPACITY) if slot not in anchored]]).all()
    assert_is_cast(case["network_input"].flatten(1), case["state"][list(GATHER_SLOTS)])
    for copy, original in COPIES.items():
        assert torch.equal(case["network_input"][copy], case["network_input"][original])


def test_a_batch_may_start_without_a_network(step):
    """Without a network's input, images or accumulators the states are the same."""
    case, few = gather_case((3, 8, 8)), gather_case((3, 8, 8))
    case["image_rows"].fill_(-1)
    step(**case)
    for name in ("images", "image_rows", "accumulator"):
        del few[name]
    step(**few | {"network_input": None})
    assert torch.equal(few["state"], case["state"])
    assert same(few["anchor"], case["anchor"])


def test_rows_that_pad_a_batch_leave_no_trace(step):
    """Rows of mode 0 on one shared slot write nothing but their own network rows."""
    alone, padded = gather_case((3, 8, 8)), gather_case((3, 8, 8))
    extra = {"slots": 1, "modes": 0, "stds": 0.0, "image_rows": -1, "seeds": 0, "samples": 0, "draws": 0}
    for name, value in extra.items():
        padded[name] = torch.cat((padded[name], padded[name].new_full((3,), value)))
    padded["network_input"] = torch.empty(len(padded["slots"]), 3, 8, 8, device=DEVICE)
    step(**alone)
    step(**padded)
    for name in ("state", "anchor", "accumulator"):
        assert same(alone[name], padded[name])
    assert torch.equal(padded["network_input"][: len(alone["slots"])], alone["network_input"])


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize(("shape", "dtype"), [*FORMATS, ((5,), torch.float32), ((64,), torch.float32)], ids=str)
@pytest.mark.parametrize("fill", [gather.normal_, reference.normal_, ops.normal_], ids=["kernel", "twin", "operator"])
def test_normal_fills_with_the_noise_of_the_keys(fill, shape, dtype, last):
    """In logical order, whatever lies where in memory."""
    out = torch.empty(ROWS, *shape, dtype=dtype, device=DEVICE)
    if last and len(shape) == 3:
        out = channels_last(out)
    fill(out, *keys())
    expected = given_noise(int(np.prod(shape)))
    unit = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11 if dtype == torch.float16 else 0.0
    if DEVICE == "cpu" and dtype == torch.bfloat16:
        unit *= 2.0  # Triton's interpreter cuts bits off where compiled code rounds
    assert ((out.flatten(1).float() - expected).abs() <= unit * expected.abs() + 4e-6).all()
