"""The fused ensemble update against float64 and against its twin."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels import ensemble, ops, reference
from kernels.launch import Noise

from .cases import (
    CAPACITY,
    DEVICE,
    FORMATS,
    NULL_ROWS,
    ROWS,
    SLOTS,
    a_history,
    assert_is_cast,
    channels_last,
    ensemble_case,
    given_noise,
    keys,
    same,
)


def in_float64(case: dict[str, torch.Tensor], noise: torch.Tensor) -> dict[str, np.ndarray]:
    """The update's formula, for the rows that take part, and the sum of its terms' magnitudes."""
    k = case["coefficients"].cpu().double().numpy()[:, :, None]
    x, anchor, before = (case[name].cpu().double().numpy()[list(SLOTS)] for name in ("state", "anchor", "accumulator"))
    every = case["output"].cpu().double().flatten(1).numpy()
    out, null, n = every[:ROWS], every[list(NULL_ROWS)], noise.cpu().double().numpy()
    out = out + k[:, 0] * (out - null)
    raw = k[:, 1] * x + k[:, 2] * out
    p = np.clip(raw, k[:, 3], k[:, 4])
    y = np.where(k[:, 10] != 0, k[:, 10] * before, 0.0) + k[:, 11] * p
    away = np.where(k[:, 7] != 0, k[:, 7] * anchor, 0.0)
    terms = [k[:, 5] * x, k[:, 6] * p, away, k[:, 8] * y, k[:, 9] * n]
    y[0] = before[0]  # row 0 leaves it alone
    return {"p": p, "y": y, "x": sum(terms), "size": sum(abs(t) for t in terms) + 8 * abs(k[:, 6]) + 8 * abs(k[:, 8])}


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize(("shape", "dtype"), FORMATS, ids=str)
def test_ensemble_step_is_its_formula(shape, dtype, last):
    """State, accumulator, prediction and next input against float64; slots that take no part keep their bytes."""
    case = ensemble_case(shape, dtype)
    before = {name: case[name].clone() for name in ("state", "anchor", "accumulator")}
    elements = before["state"].shape[1]
    expected = in_float64(case, given_noise(elements))
    if last:
        case["output"] = channels_last(case["output"])
    prediction, network_input = torch.empty(ROWS, elements, device=DEVICE), torch.empty_like(case["output"])
    nonfinite = ensemble.ensemble_step(**case, noise=keys(), prediction=prediction, network_input=network_input)
    # float32 roundings of the largest term: the bound does not grow with the result's cancellation.
    bound = 8e-7 * expected["size"] + 1e-7
    assert (np.abs(case["state"][list(SLOTS)].cpu().numpy() - expected["x"]) <= bound).all()
    assert np.allclose(prediction.cpu(), expected["p"], rtol=1e-5, atol=2e-6)
    assert np.allclose(case["accumulator"][list(SLOTS)].cpu(), expected["y"], rtol=1e-5, atol=4e-6, equal_nan=True)
    assert_is_cast(network_input[:ROWS].reshape(ROWS, -1), case["state"][list(SLOTS)])
    assert nonfinite.tolist() == [0] * ROWS
    others = [slot for slot in range(CAPACITY) if slot not in SLOTS]
    for name in ("state", "accumulator"):
        assert torch.equal(case[name][others], before[name][others])
    assert same(case["anchor"], before["anchor"])


def test_given_noise_is_the_twin_exactly():
    """With the same noise the interpreter rounds as torch does; compiled code may fuse products into sums."""
    case, twin = ensemble_case((3, 7, 5)), ensemble_case((3, 7, 5))
    noise = given_noise(105)
    ensemble.ensemble_step(**case, noise=noise)
    twin["output"] = twin["output"].flatten(1)
    reference.ensemble_step(**twin, noise=noise)
    tolerance = 0.0 if DEVICE == "cpu" else 4e-6
    for name in ("state", "accumulator"):
        assert torch.allclose(case[name], twin[name], rtol=0.0, atol=tolerance, equal_nan=True)


def test_a_row_does_not_depend_on_its_company():
    """The same bytes alone, and between other rows in another order."""
    crowd, alone = ensemble_case((3, 7, 5)), ensemble_case((3, 7, 5))
    ensemble.ensemble_step(**crowd, noise=keys())
    picked = torch.tensor([2], device=DEVICE)
    alone["output"] = alone["output"][[2, NULL_ROWS[2]]]
    alone["null_rows"] = picked - 1
    for name in ("slots", "coefficients"):
        alone[name] = alone[name][picked].contiguous()
    ensemble.ensemble_step(**alone, noise=Noise(*(key[picked] for key in keys())))
    assert torch.equal(alone["state"][SLOTS[2]], crowd["state"][SLOTS[2]])


def test_history_is_weighted_and_kept():
    """Predictions before enter with their weights, the step's own goes to its slot, and all other slots stay."""
    plain, case, history = ensemble_case((3, 7, 5)), ensemble_case((3, 7, 5)), a_history(105)
    prediction = torch.empty(ROWS, 105, device=DEVICE)
    ensemble.ensemble_step(**plain, prediction=prediction)
    before = history.pool.clone()
    ensemble.ensemble_step(**case, history=history)
    for row, (slot, count, keep) in enumerate(zip(SLOTS, history.counts, history.keep, strict=True)):
        added = (history.weights[row, :count, None] * before[history.slots[row, :count]]).sum(0)
        assert torch.allclose(case["state"][slot], plain["state"][slot] + added, atol=4e-6)
        if keep >= 0:
            assert torch.equal(history.pool[keep], prediction[row])
    others = [slot for slot in range(CAPACITY) if slot not in history.keep.tolist()]
    assert same(history.pool[others], before[others])


def test_history_is_the_twins_exactly():
    """The interpreter adds up in the order of the twin; slots beyond a row's count are not looked at."""
    case, twin, history, other = ensemble_case((3, 7, 5)), ensemble_case((3, 7, 5)), a_history(105), a_history(105)
    ensemble.ensemble_step(**case, history=history)
    weighted = reference.weighted_history(other)
    twin["output"] = twin["output"].flatten(1)
    _, prediction = reference.ensemble_step(**twin, history=weighted)
    reference.keep_prediction(other.pool, other.keep, prediction)
    tolerance = 0.0 if DEVICE == "cpu" else 4e-6
    for found, expected in ((case["state"], twin["state"]), (history.pool, other.pool)):
        assert torch.allclose(found, expected, rtol=0.0, atol=tolerance, equal_nan=True)


@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")  # NumPy's, in the interpreter
def test_rows_that_are_not_finite_are_named():
    """NaN and overflow flag their rows, a clip does not hide them, and their neighbours are unharmed."""
    case, clean = ensemble_case((3, 7, 5)), ensemble_case((3, 7, 5))
    case["output"][0, 1, 2, 3] = torch.nan
    case["coefficients"][3, 5] = clean["coefficients"][3, 5] = 3e38
    nonfinite = ensemble.ensemble_step(**case)
    ensemble.ensemble_step(**clean)
    assert nonfinite.tolist() == [1, 0, 0, 1]
    for row in (1, 2):
        assert torch.equal(case["state"][SLOTS[row]], clean["state"][SLOTS[row]])


def test_predictions_go_where_they_are_wanted():
    """Each row's prediction stands in its place of the buffer, that of a row at -1 nowhere; the rest stays."""
    plain, case = ensemble_case((3, 7, 5)), ensemble_case((3, 7, 5))
    every, buffer = torch.empty(ROWS, 105, device=DEVICE), torch.full((6, 105), torch.nan, device=DEVICE)
    ensemble.ensemble_step(**plain, prediction=every)
    ensemble.ensemble_step(**case, prediction=buffer, prediction_rows=torch.tensor([4, -1, 0, -1], device=DEVICE))
    assert torch.equal(buffer[[4, 0]], every[[0, 2]])
    assert buffer[[1, 2, 3, 5]].isnan().all()


@pytest.mark.parametrize("step", ["kernel", "operator"])
def test_rows_that_pad_a_batch_touch_their_scratch_slot_alone(step):
    """Padding rows share one slot, with coefficients 0; the others get what they get without them."""
    crowd, alone = ensemble_case((3, 8, 8)), ensemble_case((3, 8, 8))
    run = ensemble.ensemble_step if step == "kernel" else ops.ensemble_step
    scratch = next(slot for slot in range(CAPACITY) if slot not in SLOTS)
    for name in ("state", "anchor", "accumulator"):
        crowd[name][scratch] = torch.nan
    padding = 3
    crowd["slots"] = torch.cat((crowd["slots"], torch.full((padding,), scratch, device=DEVICE)))
    crowd["coefficients"] = torch.cat((crowd["coefficients"], torch.zeros(padding, 12, device=DEVICE)))
    crowd["null_rows"] = torch.cat((crowd["null_rows"], torch.arange(ROWS, ROWS + padding, device=DEVICE)))
    flags = run(**crowd)
    assert run(**alone).tolist() == flags[:ROWS].tolist() == [0] * ROWS
    used = [slot for slot in range(CAPACITY) if slot != scratch]
    for name in ("state", "anchor", "accumulator"):
        assert same(crowd[name][used], alone[name][used]), name
    assert crowd["accumulator"][scratch].isnan().all()
