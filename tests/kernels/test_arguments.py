"""What the launchers refuse."""

from __future__ import annotations

import pytest
import torch

from kernels import ensemble, gather

from .cases import DEVICE, ROWS, channels_last, ensemble_case, gather_case, gaussian, keys


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("output", lambda t: t.double()),
        ("output", lambda t: t[..., ::2]),
        ("output", lambda t: t[:3]),
        ("null_rows", lambda t: t[:3]),
        ("slots", lambda t: t.int()),
        ("coefficients", lambda t: t[:3]),
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


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("network_input", torch.empty(4, 3, 8, 4)),
        ("network_input", channels_last(torch.empty(4, 3, 8, 8))),
        ("network_input", torch.empty(3, 3, 8, 8)),
        ("prediction", torch.empty(3, 192)),
        ("prediction", torch.empty(4, 191)),
        ("prediction_rows", torch.zeros(4)),
        ("history", torch.empty(9, 5, 191)),
        ("weights", torch.empty(3, 5)),
        ("lines", torch.zeros(3, dtype=torch.int64)),
    ],
)
def test_a_tensor_that_may_be_given_must_fit(name, given):
    case = ensemble_case((3, 8, 8))
    if name in ("history", "weights", "lines"):
        history = {"history": torch.empty(9, 5, 192), "weights": torch.zeros(4, 5)}
        case |= history | {"lines": torch.zeros(4, dtype=torch.int64)}
    case = {key: tensor.to(DEVICE) for key, tensor in (case | {name: given}).items()}
    with pytest.raises(ValueError, match=name):
        ensemble.ensemble_step(**case)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("state", lambda t: t.half()),
        ("anchor", lambda t: t[:, 1:]),
        ("slots", lambda t: t.int()),
        ("modes", lambda t: t[:3]),
        ("stds", lambda t: t.double()),
        ("images", lambda t: t[:, 1:]),
        ("image_rows", lambda t: None),
        ("seeds", lambda t: t[:3]),
        ("network_input", lambda t: t[:, :2]),
        ("network_input", lambda t: t[:3]),
    ],
)
def test_gather_refuses_by_name(name, wrong):
    case = gather_case((3, 8, 8))
    case[name] = wrong(case[name])
    with pytest.raises(ValueError, match=name):
        gather.gather(**case)
