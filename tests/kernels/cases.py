"""What the tests of the fused kernels share: rows, their keys, and whole calls of each kernel.

The kernels run in Triton's interpreter, and compiled where a GPU is.
"""

from __future__ import annotations

import numpy as np
import torch

from kernels import philox
from kernels.launch import ANCHORS, COPY, STARTS, History, Noise

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CAPACITY, ROWS = 9, 4
SLOTS = (3, 0, 8, 5)
SEEDS, SAMPLES, DRAWS = (5, 2**64 - 1, 7, 2**40 + 3), (0, 2**32 - 1, 3, 4), (0, 1, 2, 2**32 - 1)
SHAPES = [(1, 8, 8), (3, 7, 5), (1, 1, 1), (2, 33, 31), (3, 32, 32), (4, 6, 6), (20, 4, 5)]
TYPES = [torch.float32, torch.bfloat16, torch.float16]
FORMATS = [(shape, torch.float32) for shape in SHAPES] + [
    (shape, dtype) for shape in ((3, 7, 5), (3, 32, 32), (4, 6, 6)) for dtype in TYPES[1:]
]
"""Shapes and types of a network's tensors: on a GPU each is a compilation."""


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal, with NaN where the other has NaN."""
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


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


NULL_ROWS = (5, 4, 6, 3)
"""The guided copies stand behind the rows, in some order; row 3 is not guided."""


def ensemble_case(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Pools, network outputs and coefficients.

    Row 0 has no part in the accumulator, row 1 draws no noise, row 2 has no anchor, row 3 is not guided; what rows 0
    and 2 leave alone is NaN.
    """
    elements = int(np.prod(shape))
    coefficients = gaussian(ROWS, 12, seed=1)
    coefficients[:, 3], coefficients[:, 4] = -1.0, 1.0
    coefficients[0, [8, 10, 11]] = 0.0
    coefficients[1, 9] = coefficients[2, 7] = coefficients[3, 0] = 0.0
    pools = {
        name: gaussian(CAPACITY, elements, seed=i) for i, name in enumerate(("state", "anchor", "accumulator"), 10)
    }
    pools["accumulator"][SLOTS[0]] = pools["anchor"][SLOTS[2]] = torch.nan
    output = gaussian(max(NULL_ROWS) + 1, *shape, seed=20).to(dtype)
    rows = {"slots": torch.tensor(SLOTS, device=DEVICE), "null_rows": torch.tensor(NULL_ROWS, device=DEVICE)}
    return pools | rows | {"output": output, "coefficients": coefficients}


def a_history(elements: int) -> History:
    """Of the rows of `ensemble_case`: the first step of one, the last of another, one that has none, and one between.

    The weights beyond what a row has are NaN, and so is a slot of the pool that nobody looks at.
    """
    nan = torch.nan
    slots, weights = [[0, 0], [2, 4], [0, 0], [6, 0]], [[nan, nan], [0.3, -1.7], [nan, nan], [0.9, nan]]
    tables = torch.tensor(slots, device=DEVICE), torch.tensor(weights, device=DEVICE)
    pool = gaussian(CAPACITY, elements, seed=30)
    pool[0] = nan
    return History(pool, *tables, *(torch.tensor(column, device=DEVICE) for column in ([0, 2, 0, 1], [1, -1, -1, 7])))


CHAINS = [
    [1.0, 0.0, -0.1, 0.2, np.inf, -9.0, 9.0],  # plain
    [0.9, 0.1, -0.5, 0.0, 0.7, -9.0, 9.0],  # drift to the anchor, bounded displacement, temperature 0
    [1.0, 0.0, -0.1, 1.0, np.inf, -0.5, 0.5],  # box
    [1.0, 0.0, 0.3, 0.1, 1e9, -9.0, 9.0],  # a bound that is not met
]


def langevin_case(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A chain of each kind; the anchors of those that have none are NaN."""
    elements = int(np.prod(shape))
    case = {
        "state": gaussian(CAPACITY, elements, seed=1),
        "anchor": gaussian(CAPACITY, elements, seed=2),
        "slots": torch.tensor(SLOTS, device=DEVICE),
        "gradient": (3 * gaussian(ROWS, *shape, seed=3)).to(dtype),
        "coefficients": torch.tensor(CHAINS, dtype=torch.float32, device=DEVICE),
    }
    case["anchor"][list(SLOTS[:1] + SLOTS[2:])] = torch.nan
    return case


def metropolis_case(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A chain that starts, one in the middle, one that ends, and a row that is none; what is not read is NaN."""
    elements = int(np.prod(shape))
    step = 0.5 / elements  # such that proposals of these gradients are about as likely as not
    chains = [[0.0, 0.0, 0.7, step], [0.7, step, 0.7, 2 * step], [-0.4, step, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    names = ("state", "place", "slope")
    case = {name: 0.1 * gaussian(CAPACITY, elements, seed=seed) for seed, name in enumerate(names, 50)}
    case |= {
        "level": gaussian(CAPACITY, seed=53),
        "slots": torch.tensor(SLOTS, device=DEVICE),
        "energy": gaussian(ROWS, seed=54).to(dtype),
        "gradient": (0.1 * gaussian(ROWS, *shape, seed=55)).to(dtype),
        "coefficients": torch.tensor([[*chain, -30.0, 30.0] for chain in chains], device=DEVICE),
    }
    case["state"][SLOTS[1]] = case["place"][SLOTS[1]] + step**0.5 * gaussian(elements, seed=56)
    for name in ("place", "slope", "level"):
        case[name][SLOTS[0]] = torch.nan
    for name in (*names, "level"):
        case[name][SLOTS[3]] = torch.nan
    case["gradient"][3] = case["energy"][3] = torch.nan
    return case


GATHERS = (STARTS, STARTS | COPY, STARTS, 0, COPY, ANCHORS, STARTS, ANCHORS)
GATHER_SLOTS = (3, 3, 0, 8, 8, 5, 2, 7)
COPIES = {1: 0, 4: 3}
"""Rows of `gather_case` that are the guided copies of others."""


def gather_case(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Rows of every mode: row 2 starts at its image alone, row 6 at noise alone, rows 0 and 1 at both.

    What is not read is NaN: the states of those that start, all anchors and accumulators.
    """
    elements, rows = int(np.prod(shape)), len(GATHERS)
    state = gaussian(CAPACITY, elements, seed=40)
    state[[3, 0, 2]] = torch.nan
    seeds = torch.from_numpy(np.array([5, 5, 6, 7, 7, 8, 2**64 - 1, 9], dtype=np.uint64).view(np.int64)).to(DEVICE)
    samples = torch.tensor([0, 0, 1, 2, 2, 3, 2**32 - 1, 0], device=DEVICE)
    return {
        "state": state,
        "slots": torch.tensor(GATHER_SLOTS, device=DEVICE),
        "network_input": torch.empty(rows, *shape, dtype=dtype, device=DEVICE),
        "anchor": torch.full((CAPACITY, elements), torch.nan, device=DEVICE),
        "modes": torch.tensor(GATHERS, device=DEVICE),
        "accumulator": torch.full((CAPACITY, elements), torch.nan, device=DEVICE),
        "stds": torch.tensor([1.5, 1.5, 0.0, 1.0, 1.0, 1.0, 80.0, 1.0], device=DEVICE),
        "images": gaussian(3, elements, seed=41),
        "image_rows": torch.tensor([2, 2, 0, -1, -1, 1, -1, 1], device=DEVICE),
        "seeds": seeds,
        "samples": samples,
        "draws": torch.tensor([0, 0, 1 << 20, 3, 3, 4, 2**32 - 1, 5], device=DEVICE),
    }
