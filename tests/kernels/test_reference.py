"""The updates in torch and in NumPy against formulas written out in float64, and their indifference to company."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels import cpu, reference
from kernels.launch import History

CAPACITY, ELEMENTS = 12, 37


def _normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _coefficients(rows: int) -> torch.Tensor:
    values = _normal(rows, 12, seed=1)
    values[:, 3], values[:, 4] = -1.0, 1.0
    return values


def _ensemble_in_torch(state, slots, output, coefficients, *, null_output=None, **keywords):
    """As in NumPy, with the unconditional outputs apart."""
    if null_output is not None:
        rows = len(output)
        keywords["null_rows"] = torch.arange(rows) + rows
        output = torch.cat((output, null_output))
    return reference.ensemble_step(state, slots, output, coefficients, **keywords)


def _ensemble_in_numpy(*arguments, **keywords):
    return _in_numpy(cpu.ensemble_step, arguments, keywords)


def _langevin_in_numpy(*arguments, **keywords):
    return _in_numpy(cpu.langevin_step, arguments, keywords)


def _in_numpy(step, arguments, keywords):
    """Call a step of `kernels.cpu` on the tensors' own memory, as it works in place."""
    found = step(*(tensor.numpy() for tensor in arguments), **{name: t.numpy() for name, t in keywords.items()})
    return tuple(torch.from_numpy(array) for array in found)


@pytest.fixture(params=[_ensemble_in_torch, _ensemble_in_numpy], ids=["torch", "numpy"])
def ensemble_step(request):
    return request.param


@pytest.fixture(params=[reference.langevin_step, _langevin_in_numpy], ids=["torch", "numpy"])
def langevin_step(request):
    return request.param


def _ensemble(ensemble_step, rows: list[int], *, company: list[int] = ()) -> dict[str, torch.Tensor]:
    """Update `rows` of fixed pools, together with the rows `company`; returns the pools and predictions."""
    order = [*company, *rows]
    pools = {
        name: _normal(CAPACITY, ELEMENTS, seed=seed) for seed, name in enumerate(("state", "anchor", "accumulator"), 10)
    }
    full = {
        name: _normal(CAPACITY, ELEMENTS, seed=seed)
        for seed, name in enumerate(("output", "null_output", "history", "noise"), 20)
    }
    _, prediction = ensemble_step(
        pools["state"],
        torch.tensor(order),
        full["output"][order],
        _coefficients(CAPACITY)[order],
        anchor=pools["anchor"],
        accumulator=pools["accumulator"],
        **{name: full[name][order] for name in ("null_output", "history", "noise")},
    )
    return pools | {"prediction": prediction[len(company) :]}


def test_ensemble_step_is_its_formula(ensemble_step):
    """The whole update, with random coefficients, matches float64 to float32 precision; other rows stay."""
    rows = [7, 2, 11]
    got = _ensemble(ensemble_step, rows)
    x0 = {
        name: _normal(CAPACITY, ELEMENTS, seed=seed).double().numpy() for seed, name in enumerate(("x", "xT", "y"), 10)
    }
    t = {
        name: _normal(CAPACITY, ELEMENTS, seed=seed).double().numpy()
        for seed, name in enumerate(("out", "null", "h", "n"), 20)
    }
    k = _coefficients(CAPACITY).double().numpy()[:, :, None]
    out = t["out"] + k[:, 0] * (t["out"] - t["null"])
    p = np.clip(k[:, 1] * x0["x"] + k[:, 2] * out, -1, 1)
    y = k[:, 10] * x0["y"] + k[:, 11] * p
    x = k[:, 5] * x0["x"] + k[:, 6] * p + k[:, 7] * x0["xT"] + k[:, 8] * y + k[:, 9] * t["n"] + t["h"]
    for index in range(CAPACITY):
        expected_x, expected_y = (x, y) if index in rows else (x0["x"], x0["y"])
        assert np.allclose(got["state"][index], expected_x[index], rtol=1e-5, atol=2e-6)
        assert np.allclose(got["accumulator"][index], expected_y[index], rtol=1e-5, atol=2e-6)
    assert np.allclose(got["prediction"], p[rows], rtol=1e-5, atol=2e-6)


def test_company_leaves_no_trace(ensemble_step):
    """A row's new state is bitwise the same alone and behind other rows."""
    alone, crowded = _ensemble(ensemble_step, [3]), _ensemble(ensemble_step, [3], company=[8, 1, 0, 9, 5])
    assert alone["state"][3].numpy().tobytes() == crowded["state"][3].numpy().tobytes()


def test_absent_terms_leave_no_trace_in_the_sign_of_zero(ensemble_step):
    """A row without noise gets the same bytes whether or not a neighbour has noise, where its result is zero."""
    state, anchor = torch.zeros(2, 4), torch.zeros(2, 4)
    coefficients = torch.zeros(2, 12)
    coefficients[:, 4], coefficients[:, 5] = 1.0, -1.0
    ensemble_step(state, torch.tensor([0]), torch.zeros(1, 4), coefficients[:1], anchor=anchor)
    alone = state[0].numpy().tobytes()
    state.zero_()
    ensemble_step(state, torch.tensor([0, 1]), torch.zeros(2, 4), coefficients, anchor=anchor, noise=torch.zeros(2, 4))
    assert state[0].numpy().tobytes() == alone


def test_langevin_step_is_its_formula(langevin_step):
    """Gradient, anchor, noise, clip of the displacement and box, per row, against float64; norms are returned."""
    state, anchor = _normal(CAPACITY, ELEMENTS, seed=1), _normal(CAPACITY, ELEMENTS, seed=2)
    gradient, noise = _normal(3, ELEMENTS, seed=3), _normal(3, ELEMENTS, seed=4)
    k = torch.tensor(
        [[1, 0, -0.1, 0.2, 1e9, -9, 9], [0.9, 0.1, -0.5, 0.0, 0.7, -9, 9], [1, 0, -0.1, 1.0, 1e9, -0.5, 0.5]]
    )
    before, slots = state.clone().double().numpy(), [4, 0, 9]
    _, norms = langevin_step(state, torch.tensor(slots), gradient, k, anchor=anchor, noise=noise)
    for row, slot in enumerate(slots):
        a, c, s, e, limit, low, high = k[row].double().numpy()
        g = gradient[row].double().numpy()
        assert float(norms[row]) == pytest.approx(np.linalg.norm(g), rel=1e-6)
        d = s * g
        d *= min(1.0, limit / np.linalg.norm(d))
        x = a * before[slot] + c * anchor[slot].double().numpy() + d + e * noise[row].double().numpy()
        assert np.allclose(state[slot], np.clip(x, low, high), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["coefficients", "noise", "slots"])
def test_wrong_shapes_are_refused_by_name(name, ensemble_step):
    """A tensor of the wrong shape is named with its shape and the expected one."""
    # In torch the slots tell how many rows there are, as the output may have more.
    named = "coefficients" if name == "slots" and ensemble_step is _ensemble_in_torch else name
    arguments = {
        "coefficients": torch.zeros(2, 12),
        "noise": torch.zeros(2, 4),
        "slots": torch.tensor([0, 1]),
    }
    arguments[name] = arguments[name][:1]
    pool = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=named):
        ensemble_step(
            pool,
            arguments["slots"],
            torch.zeros(2, 4),
            arguments["coefficients"],
            anchor=pool,
            noise=arguments["noise"],
        )


@pytest.mark.parametrize("elements", [1, 5, 64, 3072])
def test_langevin_company_leaves_no_trace(langevin_step, elements):
    """A row's new state and its gradient's norm are bitwise the same alone and in a crowd, whatever its width."""
    rows = 9
    gradient, noise, start = (_normal(rows, elements, seed=seed) for seed in (1, 2, 3))
    k = torch.tensor([[1.0, 0.1, -0.3, 0.2, 0.8, -2.0, 2.0]]).repeat(rows, 1)

    def step(chosen: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        state = start.clone()
        at = [gradient[chosen], k[chosen]]
        _, norms = langevin_step(state, torch.tensor(chosen), *at, anchor=start, noise=noise[chosen])
        return state[chosen], norms

    crowd, norms = step(list(range(rows))[::-1])
    for place, row in enumerate(range(rows)[::-1]):
        alone, norm = step([row])
        assert alone[0].numpy().tobytes() == crowd[place].numpy().tobytes()
        assert norm[0].numpy().tobytes() == norms[place].numpy().tobytes()


def _metropolis_case(rows: int, elements: int, seed: int) -> dict[str, torch.Tensor]:
    """Chains around a place of low energy; row 0 is at its start, row 1 outside of its box, row 2 at its last step."""
    level, scales = _normal(CAPACITY, seed=seed), torch.tensor([0.7, 1.0, 0.1, 0.05])
    coefficients = scales.repeat(rows, 1)
    coefficients = torch.cat((coefficients, torch.tensor([[-30.0, 30.0]]).repeat(rows, 1)), 1)
    coefficients[0, 1] = coefficients[2, 3] = 0.0
    coefficients[1, 4:] = torch.tensor([-1e-3, 1e-3])
    pools = {name: _normal(CAPACITY, elements, seed=seed + i) for i, name in enumerate(("state", "place", "slope"), 1)}
    pools["place"][7] = pools["slope"][7] = level[7] = torch.nan  # of a request before
    at = {"slots": torch.tensor([7, *range(rows - 1)]), "energy": _normal(rows, seed=seed + 4)}
    at |= {"gradient": _normal(rows, elements, seed=seed + 5), "decision": _normal(rows, seed=seed + 6)}
    return pools | at | {"level": level, "coefficients": coefficients, "noise": _normal(rows, elements, seed=seed + 7)}


@pytest.mark.parametrize("seed", range(5))
def test_metropolis_in_torch_is_metropolis_in_numpy(seed):
    """The same chains are taken and refused, and all pools get the same values; both happen."""
    case = _metropolis_case(7, ELEMENTS, 100 * seed)
    arrays = {name: tensor.clone().numpy() for name, tensor in case.items()}
    before = case["place"].clone()
    found, expected = reference.metropolis_step(**case), cpu.metropolis_step(**arrays)
    for name in ("place", "slope", "level", "state"):
        assert np.array_equal(case[name].numpy(), arrays[name], equal_nan=True), name
    for ours, theirs in zip(found, expected, strict=True):
        assert np.allclose(ours, theirs, rtol=1e-6)
    moved = [not torch.equal(case["place"][slot], before[slot]) for slot in case["slots"].tolist()]
    assert moved[0]
    assert not moved[1]


def test_metropolis_takes_and_refuses_by_its_ratio():
    """A uniform number just below the ratio, written out in float64, takes the proposal, one just above refuses it."""
    case = _metropolis_case(3, ELEMENTS, 7)
    row, slot = 2, int(case["slots"][2])
    b, a = (float(case["coefficients"][row, i]) for i in (0, 1))
    x, y, g = (case[name][slot].double().numpy() for name in ("place", "state", "slope"))
    h = case["gradient"][row].double().numpy()
    moves = (((y - x + a * b * g) ** 2).sum() - ((x - y + a * b * h) ** 2).sum()) / (4 * a)
    case["energy"][row] = case["level"][slot] + (moves + 1.0) / b  # a ratio of about 1/e
    log_ratio = moves - b * (float(case["energy"][row]) - float(case["level"][slot]))
    gaussian = torch.special.ndtri(torch.tensor(log_ratio, dtype=torch.float64).exp())
    for aside, taken in ((-0.001, True), (0.001, False)):
        each = {name: tensor.clone() for name, tensor in case.items()}
        each["decision"][row] = gaussian + aside
        reference.metropolis_step(**each)
        assert torch.equal(each["place"][slot], case["state" if taken else "place"][slot])


def test_the_twins_look_at_shapes_alone():
    """All twins run on tensors without values, as they do while a CUDA graph is captured."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    rows = 4
    with FakeTensorMode():
        pool, flat, key = torch.empty(CAPACITY, 8), torch.empty(rows, 8), torch.empty(rows, dtype=torch.int64)
        table, column = torch.empty(rows, 5), torch.empty(rows)
        pools = {"anchor": pool, "accumulator": pool.clone()}
        weighted = reference.weighted_history(History(pool, table.long(), table, key, key))
        _, p = reference.ensemble_step(
            pool, key, torch.cat((flat, flat)), torch.empty(rows, 12), null_rows=key, history=weighted, **pools
        )
        reference.keep_prediction(pool, key, p)
        reference.langevin_step(pool, key, flat, torch.empty(rows, 7), anchor=pool, noise=flat)
        kept = {"place": pool, "slope": pool, "level": torch.empty(CAPACITY), "decision": column, "noise": flat}
        reference.metropolis_step(pool, key, column, flat, torch.empty(rows, 6), **kept)
        keys = {"seeds": key, "samples": key, "draws": key}
        reference.gather(
            pool, key, torch.empty(rows, 2, 2, 2), modes=key, stds=column, images=flat, image_rows=key, **pools, **keys
        )
        reference.normal_(torch.empty(rows, 2, 2, 2), **keys)
