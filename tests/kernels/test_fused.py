"""The fused kernels against float64 and against their twins: in Triton's interpreter, compiled where a GPU is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from kernels import ensemble, langevin, ops, philox, philox_torch, reference
from kernels.device import box_muller, normal, words
from kernels.launch import Noise

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CAPACITY, ROWS = 9, 4
SLOTS = (3, 0, 8, 5)
SEEDS, SAMPLES, DRAWS = (5, 2**64 - 1, 7, 2**40 + 3), (0, 2**32 - 1, 3, 4), (0, 1, 2, 2**32 - 1)
SHAPES = [(1, 8, 8), (3, 7, 5), (1, 1, 1), (2, 33, 31), (3, 32, 32)]
TYPES = [torch.float32, torch.bfloat16, torch.float16]


def gaussian(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def keys() -> Noise:
    seeds = torch.tensor(np.array(SEEDS, dtype=np.uint64).view(np.int64))
    return Noise(*(k.to(DEVICE) for k in (seeds, torch.tensor(SAMPLES), torch.tensor(DRAWS))))


def given_noise(elements: int) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(philox.normal(SEEDS, SAMPLES, DRAWS, elements))).to(DEVICE)


def assert_is_cast(cast: torch.Tensor, values: torch.Tensor) -> None:
    """`cast` is `values`, rounded to its own type."""
    if DEVICE == "cpu" and cast.dtype == torch.bfloat16:
        # Triton's interpreter cuts bits off where compiled code rounds.
        assert torch.allclose(cast.float(), values, rtol=2.0**-7, atol=0.0)
    else:
        assert torch.equal(cast, values.to(cast.dtype))


# -- noise ------------------------------------------------------------------------------------------


@triton.jit
def _words_kernel(out, seeds, samples, draws, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    four = words(tl.load(seeds + row), tl.load(samples + row), tl.load(draws + row), tl.program_id(1) * BLOCK, BLOCK)
    at = out + row * 4 * 64 + tl.program_id(1) * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    for index in tl.static_range(4):
        tl.store(at + index * 64, four[index].to(tl.int64))


@triton.jit
def _normal_kernel(out, seeds, samples, draws, elements, BLOCK: tl.constexpr):
    row, start = tl.program_id(0), tl.program_id(1) * BLOCK
    values = normal(tl.load(seeds + row), tl.load(samples + row), tl.load(draws + row), start, BLOCK)
    element = start + tl.arange(0, BLOCK)
    tl.store(out + row * elements + element, values, mask=element < elements)


def host_words() -> np.ndarray:
    """(4, rows, 64 blocks), from `kernels.philox`."""
    seed = np.array(SEEDS, dtype=np.uint64)[:, None]
    counter = np.zeros((4, ROWS, 64), dtype=np.uint64)
    counter[0] = np.arange(64)
    counter[1], counter[2] = np.array(DRAWS)[:, None], np.array(SAMPLES)[:, None]
    return philox.philox4x32(counter, np.stack((seed & np.uint64(0xFFFFFFFF), seed >> np.uint64(32))))


def test_words_agree_bit_for_bit():
    """NumPy, torch and Triton give the same Philox words for the largest and smallest keys."""
    expected = host_words().astype(np.int64)
    out = torch.zeros(ROWS, 4, 64, dtype=torch.int64, device=DEVICE)
    _words_kernel[(ROWS, 2)](out, *keys(), BLOCK=128)
    assert np.array_equal(out.cpu().numpy().transpose(1, 0, 2), expected)

    seeds, samples, draws = keys()
    zero = torch.zeros(ROWS, 64, dtype=torch.int64, device=DEVICE)
    counter = torch.stack(
        (zero + torch.arange(64, device=DEVICE), zero + draws[:, None], zero + samples[:, None], zero)
    )
    key = torch.stack((seeds & 0xFFFFFFFF, (seeds >> 32) & 0xFFFFFFFF))[:, :, None]
    assert np.array_equal(philox_torch.philox4x32(counter, key).cpu().numpy(), expected)


@pytest.mark.parametrize("elements", [1, 4, 37, 4096])
def test_normals_agree(elements):
    """torch's noise is NumPy's to the last bit or two; the kernel's differs by float32 roundings alone."""
    expected = given_noise(elements)
    assert (philox_torch.normal(*keys(), elements) - expected).abs().max() < 1e-6
    out = torch.zeros(ROWS, elements, device=DEVICE)
    _normal_kernel[(ROWS, triton.cdiv(elements, 256))](out, *keys(), elements, BLOCK=256)
    assert (out - expected).abs().max() < 4e-6


@triton.jit
def _box_muller_kernel(radius_words, angle_words, first, second, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    one, two = box_muller(tl.load(radius_words + at).to(tl.uint32), tl.load(angle_words + at).to(tl.uint32))
    tl.store(first + at, one)
    tl.store(second + at, two)


def test_box_muller_is_accurate_at_every_end():
    """Relative to the radius, the pair is within 1e-6 of float64's for the extreme words, where u is 0, 1/2 and 1."""
    ends = [0, 1, 2, 2**16, 2**30, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 2**16, 2**32 - 300, 2**32 - 2, 2**32 - 1]
    radius_words, angle_words = (
        np.array(w).ravel() for w in np.meshgrid([*ends, *range(7, 11), 2**24, 3, 5, 6][:16], ends[:8])
    )
    first, second = (torch.zeros(128, device=DEVICE) for _ in range(2))
    _box_muller_kernel[(1,)](
        *(torch.from_numpy(w).to(DEVICE) for w in (radius_words, angle_words)), first, second, BLOCK=128
    )
    radius = np.sqrt(-2 * np.log((radius_words + 0.5) / 2**32))
    angle = 2 * np.pi * (angle_words + 0.5) / 2**32
    assert (np.abs(first.cpu().numpy() - radius * np.cos(angle)) / radius).max() < 1e-6
    assert (np.abs(second.cpu().numpy() - radius * np.sin(angle)) / radius).max() < 1e-6


# -- the ensemble update ----------------------------------------------------------------------------


def ensemble_case(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Pools, network outputs and coefficients; row 1 draws no noise, row 2 has no anchor, row 3 is not guided."""
    elements = int(np.prod(shape))
    coefficients = gaussian(ROWS, 12, seed=1)
    coefficients[:, 3], coefficients[:, 4] = -1.0, 1.0
    coefficients[1, 9] = coefficients[2, 7] = coefficients[3, 0] = 0.0
    pools = {
        name: gaussian(CAPACITY, elements, seed=i) for i, name in enumerate(("state", "anchor", "accumulator"), 10)
    }
    outputs = {name: gaussian(ROWS, *shape, seed=i).to(dtype) for i, name in enumerate(("output", "null_output"), 20)}
    return pools | outputs | {"slots": torch.tensor(SLOTS, device=DEVICE), "coefficients": coefficients}


def in_float64(case: dict[str, torch.Tensor], noise: torch.Tensor) -> dict[str, np.ndarray]:
    """The update's formula, for the rows that take part, and the sum of its terms' magnitudes."""
    k = case["coefficients"].cpu().double().numpy()[:, :, None]
    x, anchor, y = (case[name].cpu().double().numpy()[list(SLOTS)] for name in ("state", "anchor", "accumulator"))
    out, null = (case[name].cpu().double().flatten(1).numpy() for name in ("output", "null_output"))
    n = noise.cpu().double().numpy()
    out = out + k[:, 0] * (out - null)
    raw = k[:, 1] * x + k[:, 2] * out
    p = np.clip(raw, k[:, 3], k[:, 4])
    y = k[:, 10] * y + k[:, 11] * p
    terms = [k[:, 5] * x, k[:, 6] * p, k[:, 7] * anchor, k[:, 8] * y, k[:, 9] * n]
    return {"p": p, "y": y, "x": sum(terms), "size": sum(abs(t) for t in terms) + 8 * abs(k[:, 6]) + 8 * abs(k[:, 8])}


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ensemble_step_is_its_formula(shape, dtype, channels_last):
    """State, accumulator, prediction and next input against float64; slots that take no part keep their bytes."""
    case = ensemble_case(shape, dtype)
    before = {name: case[name].clone() for name in ("state", "anchor", "accumulator")}
    elements = before["state"].shape[1]
    expected = in_float64(case, given_noise(elements))
    if channels_last:
        for name in ("output", "null_output"):
            case[name] = case[name].contiguous(memory_format=torch.channels_last)
    prediction, network_input = torch.empty(ROWS, elements, device=DEVICE), torch.empty_like(case["output"])
    nonfinite = ensemble.ensemble_step(**case, noise=keys(), prediction=prediction, network_input=network_input)
    # float32 roundings of the largest term: the bound does not grow with the result's cancellation.
    bound = 8e-7 * expected["size"] + 1e-7
    assert (np.abs(case["state"][list(SLOTS)].cpu().numpy() - expected["x"]) <= bound).all()
    assert np.allclose(prediction.cpu(), expected["p"], rtol=1e-5, atol=2e-6)
    assert np.allclose(case["accumulator"][list(SLOTS)].cpu(), expected["y"], rtol=1e-5, atol=4e-6)
    assert_is_cast(network_input.reshape(ROWS, -1), case["state"][list(SLOTS)])
    assert nonfinite.tolist() == [0] * ROWS
    others = [slot for slot in range(CAPACITY) if slot not in SLOTS]
    for name in before:
        assert torch.equal(case[name][others], before[name][others])
    assert torch.equal(case["anchor"], before["anchor"])


def test_given_noise_is_the_twin_exactly():
    """With the same noise the interpreter rounds as torch does; compiled code may fuse products into sums."""
    case, twin = ensemble_case((3, 7, 5)), ensemble_case((3, 7, 5))
    noise = given_noise(105)
    ensemble.ensemble_step(**case, noise=noise)
    flat = {name: twin.pop(name).flatten(1) for name in ("output", "null_output")}
    reference.ensemble_step(**twin, **flat, noise=noise)
    tolerance = 0.0 if DEVICE == "cpu" else 4e-6
    for name in ("state", "accumulator"):
        assert (case[name] - twin[name]).abs().max() <= tolerance


def test_a_row_does_not_depend_on_its_company():
    """The same bytes alone, and between other rows in another order."""
    crowd, alone = ensemble_case((3, 7, 5)), ensemble_case((3, 7, 5))
    ensemble.ensemble_step(**crowd, noise=keys())
    picked = torch.tensor([2], device=DEVICE)
    for name in ("output", "null_output", "slots", "coefficients"):
        alone[name] = alone[name][picked].contiguous()
    ensemble.ensemble_step(**alone, noise=Noise(*(key[picked] for key in keys())))
    assert torch.equal(alone["state"][SLOTS[2]], crowd["state"][SLOTS[2]])


def test_history_is_weighted_and_kept():
    """Predictions before the row's step enter with their weights, its own is kept; a row at -1 has no part in it."""
    shape, steps = (3, 7, 5), 5
    plain, case = ensemble_case(shape), ensemble_case(shape)
    prediction = torch.empty(ROWS, 105, device=DEVICE)
    ensemble.ensemble_step(**plain, prediction=prediction)
    history = gaussian(CAPACITY, steps, 105, seed=30)
    history[:, 3:] = torch.nan  # of requests before
    kept, weights = history.clone(), gaussian(ROWS, steps, seed=31)
    lines = torch.tensor([0, 2, -1, 3], device=DEVICE)
    ensemble.ensemble_step(**case, history=history, weights=weights, lines=lines)
    for row, (slot, line) in enumerate(zip(SLOTS, lines.tolist(), strict=True)):
        added = (weights[row, : max(0, line), None] * kept[slot, : max(0, line)]).sum(0)
        assert torch.allclose(case["state"][slot], plain["state"][slot] + added, atol=4e-6)
        if line >= 0:
            assert torch.equal(history[slot, line], prediction[row])
            kept[slot, line] = prediction[row]
    assert torch.equal(history.nan_to_num(), kept.nan_to_num())


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


# -- the Langevin update ----------------------------------------------------------------------------

CHAINS = [
    [1.0, 0.0, -0.1, 0.2, np.inf, -9.0, 9.0],  # plain
    [0.9, 0.1, -0.5, 0.0, 0.7, -9.0, 9.0],  # drift to the anchor, bounded displacement, temperature 0
    [1.0, 0.0, -0.1, 1.0, np.inf, -0.5, 0.5],  # box
    [1.0, 0.0, 0.3, 0.1, 1e9, -9.0, 9.0],  # a bound that is not met
]


def langevin_case(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    elements = int(np.prod(shape))
    return {
        "state": gaussian(CAPACITY, elements, seed=1),
        "anchor": gaussian(CAPACITY, elements, seed=2),
        "slots": torch.tensor(SLOTS, device=DEVICE),
        "gradient": (3 * gaussian(ROWS, *shape, seed=3)).to(dtype),
        "coefficients": torch.tensor(CHAINS, dtype=torch.float32, device=DEVICE),
    }


@pytest.mark.parametrize("whole_row", [16384, 512], ids=["one program a row", "several"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_langevin_step_is_its_formula(shape, dtype, channels_last, whole_row, monkeypatch):
    """State, norm and next input against float64, whether or not a row fits into one program."""
    monkeypatch.setattr(langevin, "WHOLE_ROW", whole_row)
    monkeypatch.setattr(langevin, "BLOCK", 512)
    case = langevin_case(shape, dtype)
    k = case["coefficients"].cpu().double().numpy()[:, :, None]
    g = case["gradient"].cpu().double().flatten(1).numpy()
    x, anchor = (case[name].cpu().double().numpy()[list(SLOTS)] for name in ("state", "anchor"))
    norm = np.linalg.norm(g, axis=1)
    d = k[:, 2] * g
    d *= np.minimum(1.0, k[:, 4] / np.linalg.norm(d, axis=1, keepdims=True))
    n = given_noise(g.shape[1]).cpu().double().numpy()
    expected = np.clip(k[:, 0] * x + k[:, 1] * anchor + d + k[:, 3] * n, k[:, 5], k[:, 6])
    if channels_last:
        case["gradient"] = case["gradient"].contiguous(memory_format=torch.channels_last)
    network_input = torch.empty_like(case["gradient"])
    norms, nonfinite = langevin.langevin_step(**case, noise=keys(), network_input=network_input)
    assert np.allclose(case["state"][list(SLOTS)].cpu(), expected, rtol=2e-6, atol=6e-6)
    assert np.allclose(norms.cpu(), norm, rtol=1e-6)
    assert_is_cast(network_input.reshape(ROWS, -1), case["state"][list(SLOTS)])
    assert nonfinite.tolist() == [0] * ROWS


@pytest.mark.parametrize("clips", [True, False])
def test_given_noise_is_langevins_twin_exactly(clips, monkeypatch):
    """With the same noise the interpreter rounds as torch does, with a second reading of the gradient and without."""
    monkeypatch.setattr(langevin, "WHOLE_ROW", 64)
    case, twin, noise = langevin_case((3, 40, 50)), langevin_case((3, 40, 50)), given_noise(6000)
    if not clips:
        for each in (case, twin):
            each["coefficients"][:, 4] = torch.inf
    norms, _ = langevin.langevin_step(**case, noise=noise, clips=clips)
    twin["gradient"] = twin["gradient"].flatten(1)
    _, expected = reference.langevin_step(**twin, noise=noise)
    assert (case["state"] - twin["state"]).abs().max() <= (0.0 if DEVICE == "cpu" else 4e-6)
    assert torch.allclose(norms, expected, rtol=1e-6)


def test_a_steep_gradient_is_bounded_and_not_lost():
    """A gradient whose squares overflow float32 still moves the row by its bound, in its direction."""
    case = langevin_case((3, 7, 5))
    case["gradient"][1] *= 1e25
    before = case["state"][SLOTS[1]].clone()
    norms, nonfinite = langevin.langevin_step(**case)
    moved = case["state"][SLOTS[1]] - (0.9 * before + 0.1 * case["anchor"][SLOTS[1]])
    assert float(moved.norm()) == pytest.approx(0.7, rel=1e-4)
    assert float(norms[1]) > 1e25
    assert nonfinite.tolist() == [0] * ROWS


def test_a_gradient_that_is_not_finite_is_named():
    """NaN flags its row and no other; the box does not turn it into a number."""
    case = langevin_case((3, 7, 5))
    case["gradient"][2, 0, 0, 0] = torch.nan
    _, nonfinite = langevin.langevin_step(**case)
    assert nonfinite.tolist() == [0, 0, 1, 0]
    assert case["state"][SLOTS[2]].isnan().any()


# -- arguments, and torch operators -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("output", lambda t: t.double()),
        ("output", lambda t: t[..., ::2]),
        ("null_output", lambda t: t[:, :1]),
        ("null_output", lambda t: t.contiguous(memory_format=torch.channels_last)),
        ("slots", lambda t: t.int()),
        ("slots", lambda t: t[:2]),
        ("coefficients", lambda t: t[:, :11]),
        ("state", lambda t: t[:, :-1]),
        ("accumulator", lambda t: t.half()),
        ("anchor", lambda t: t.t().contiguous().t()),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_by_name(name, wrong):
    case = ensemble_case((3, 8, 8))
    case[name] = wrong(case[name])
    with pytest.raises(ValueError, match=name if name != "output" else "output|layout|contiguous"):
        ensemble.ensemble_step(**case)


def test_noise_that_does_not_fit_is_refused_by_name():
    case = ensemble_case((3, 8, 8))
    with pytest.raises(ValueError, match=r"noise\.draws"):
        ensemble.ensemble_step(**case, noise=keys()._replace(draws=keys().draws.int()))
    with pytest.raises(ValueError, match="noise is"):
        ensemble.ensemble_step(**case, noise=gaussian(ROWS, 191, seed=0))


def operator_arguments(steps: int = 5) -> dict[str, torch.Tensor]:
    case = ensemble_case((3, 7, 5))
    case["history"], case["weights"] = gaussian(CAPACITY, steps, 105, seed=30), gaussian(ROWS, steps, seed=31)
    case["lines"] = torch.tensor([0, 2, -1, 3], device=DEVICE)
    case["prediction"], case["network_input"] = torch.empty(ROWS, 105, device=DEVICE), torch.empty_like(case["output"])
    return case | dict(zip(("seeds", "samples", "draws"), keys(), strict=True))


def test_the_operator_does_what_the_kernel_does():
    """On the CPU the operator is the twins; every tensor that it writes is the kernel's."""
    case, through_operator = operator_arguments(), operator_arguments()
    noise = Noise(*(case.pop(name) for name in ("seeds", "samples", "draws")))
    flags = ensemble.ensemble_step(**case, noise=noise)
    assert torch.equal(ops.ensemble_step(**through_operator), flags)
    for name in ("state", "accumulator", "history", "prediction", "network_input"):
        assert (case[name] - through_operator[name]).abs().max() < 4e-6, name


def test_the_operators_are_well_formed():
    """torch's own checks: schemas, what is mutated, fake tensors, export."""
    torch.library.opcheck(ops.ensemble_step, (), operator_arguments())
    chain = langevin_case((3, 7, 5)) | dict(zip(("seeds", "samples", "draws"), keys(), strict=True))
    torch.library.opcheck(ops.langevin_step, (), chain)


def test_langevins_operator_does_what_its_kernel_does():
    case, through_operator = langevin_case((3, 7, 5)), langevin_case((3, 7, 5))
    norms, flags = langevin.langevin_step(**case, noise=keys())
    found = ops.langevin_step(**through_operator, **keys()._asdict())
    assert torch.allclose(found[0], norms)
    assert torch.equal(found[1], flags)
    assert (case["state"] - through_operator["state"]).abs().max() < 4e-6
