"""What the launchers refuse."""

from __future__ import annotations

import pytest
import torch

from kernels import ensemble, gather

from .cases import DEVICE, ROWS, a_history, channels_last, ensemble_case, gather_case, gaussian, keys


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
    ],
)
def test_a_tensor_that_may_be_given_must_fit(name, given):
    case = {key: tensor.to(DEVICE) for key, tensor in (ensemble_case((3, 8, 8)) | {name: given}).items()}
    with pytest.raises(ValueError, match=name):
        ensemble.ensemble_step(**case)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("pool", lambda t: t[:, 1:]),
        ("pool", lambda t: t.half()),
        ("slots", lambda t: t.int()),
        ("slots", lambda t: t[0]),
        ("weights", lambda t: t[:3]),
        ("weights", lambda t: t[:, :1]),
        ("counts", lambda t: t[:3]),
        ("keep", lambda t: t.float()),
    ],
)
def test_a_history_that_does_not_fit_is_refused_by_name(name, wrong):
    history = a_history(192)
    with pytest.raises(ValueError, match=rf"history\.{name}"):
        ensemble.ensemble_step(
            **ensemble_case((3, 8, 8)), history=history._replace(**{name: wrong(getattr(history, name))})
        )


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
