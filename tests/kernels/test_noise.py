"""Noise in Triton and in torch, against `kernels.philox`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from kernels import philox, philox_torch
from kernels.device import box_muller, normal, words

from .cases import DEVICE, DRAWS, ROWS, SAMPLES, SEEDS, given_noise, keys


@triton.jit
def _words_kernel(out, seeds, samples, draws, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    block = tl.program_id(1) * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    four = words(tl.load(seeds + row), tl.load(samples + row), tl.load(draws + row), block)
    at = out + row * 4 * 64 + tl.program_id(1) * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    for index in tl.static_range(4):
        tl.store(at + index * 64, four[index].to(tl.int64))


@triton.jit
def _normal_kernel(out, seeds, samples, draws, elements, BLOCK: tl.constexpr):
    row, start = tl.program_id(0), tl.program_id(1) * BLOCK
    block = start // 4 + tl.arange(0, BLOCK // 4)
    values = normal(tl.load(seeds + row), tl.load(samples + row), tl.load(draws + row), block)
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
