"""The 2-D checkerboard: exact densities, quadrature, the entropy estimate, and the shipped model against its bars."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from models.checkpoint import load_checkpoint, load_modules
from models.metrics.checkerboard import (
    CELLS,
    VARIANCE,
    Grid,
    board_quality,
    cell_of,
    density,
    energy_maps,
    model_maps,
    points,
)
from models.metrics.checkerboard_pictures import draw_checkpoint
from models.networks import build
from models.networks.classifier import one_thread
from models.run import networks_of, run
from models.samplers import SampleOptions, compile_sample, compile_score
from models.train.checkerboard import (
    ENERGY_CONFIG,
    GENERATOR_CONFIG,
    GRID,
    NAME,
    Recipe,
    Trainer,
    nearest_neighbour_entropy,
    scales,
)

ZOO = Path(__file__).parents[2] / "models" / "zoo"


def test_data_fill_the_eight_cells_evenly_and_have_the_stated_variance():
    data = points(40_000, seed=3)
    quality = board_quality(data)
    assert (quality.support, quality.covered) == (1.0, 8)
    assert quality.total_variation < 0.01
    assert np.cov(data.T) == pytest.approx(np.array([[VARIANCE, 0.25], [0.25, VARIANCE]]), abs=0.03)


def test_points_are_seeded():
    assert np.array_equal(points(5, seed=1), points(5, seed=1))
    assert not np.array_equal(points(5, seed=1), points(5, seed=2))


def test_cells_are_told_from_the_gaps_between_them_and_from_outside():
    centres = np.array(CELLS) - 1.5
    assert cell_of(centres).tolist() == list(range(8))
    assert cell_of(centres * [-1, 1]).tolist() == [-1] * 8  # mirrored, filled cells fall on empty ones
    assert cell_of([[2.5, 0.5], [-2.5, -2.5], [0.5, 2.0]]).tolist() == [-1, -1, -1]


def test_quality_counts_what_is_off_the_support_and_what_is_missing():
    one_cell = np.full((10, 2), -1.5)
    assert board_quality(one_cell).covered == 1
    assert board_quality(one_cell).total_variation == pytest.approx(7 / 8)
    half_off = np.concatenate([points(4000, seed=0), np.full((4000, 2), 9.0)])
    assert board_quality(half_off).support == 0.5
    assert board_quality(half_off).total_variation == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("samples", [np.zeros((3, 3)), np.zeros(2), np.array([[np.nan, 0.0]]), np.zeros((0, 2))])
def test_unusable_samples_are_refused(samples):
    with pytest.raises(ValueError, match=r"points|samples"):
        board_quality(samples)


@pytest.mark.parametrize(("signal", "noise"), [(1.0, 0.0), (0.99, 0.14), (0.5, 0.85)])
def test_density_integrates_to_one_and_agrees_with_noised_data(signal, noise):
    grid = Grid(reach=5.0, side=500)
    values = density(grid.points(), signal, noise)
    assert values.sum() * grid.area == pytest.approx(1.0, abs=2e-3)
    random = np.random.default_rng(0)
    noised = signal * points(200_000, seed=0) + noise * random.standard_normal((200_000, 2))
    near = np.abs(noised - [0.5, 0.5]).max(axis=1) < 0.1  # a small square in the middle of a cell
    assert near.mean() / 0.04 == pytest.approx(density([[0.5, 0.5]], signal, noise)[0], rel=0.1)


def test_quadrature_finds_the_normaliser_of_a_gaussian_and_no_divergence_of_the_truth_from_itself():
    (gaussian,) = energy_maps(lambda x, _: (x**2).sum(axis=1) / 2.0, {0.0: (1.0, 0.5)}, Grid(6.0, 300)).values()
    assert gaussian.log_z == pytest.approx(np.log(2.0 * np.pi), abs=1e-6)
    assert gaussian.divergence > 0.01
    (truth,) = energy_maps(lambda x, _: 3.0 - np.log(density(x, 0.9, 0.4)), {0.0: (0.9, 0.4)}).values()
    assert truth.log_z == pytest.approx(-3.0, abs=1e-3)
    assert (truth.divergence, truth.total_variation) == (pytest.approx(0.0, abs=1e-6), pytest.approx(0.0, abs=1e-3))


def test_nearest_neighbour_entropy_grows_by_d_log_c_when_samples_spread_c_times():
    samples = torch.randn(6, 5, 2, generator=torch.Generator().manual_seed(0))
    gained = nearest_neighbour_entropy(3.0 * samples, 1e-6) - nearest_neighbour_entropy(samples, 1e-6)
    assert gained.numpy() == pytest.approx(2.0 * np.log(3.0), abs=1e-4)


def test_nearest_neighbour_entropy_of_two_samples_is_the_papers_formula_and_is_floored():
    pair = torch.tensor([[[0.0, 0.0]], [[3.0, 4.0]]])
    assert nearest_neighbour_entropy(pair, 1e-3).flatten().tolist() == pytest.approx([2.0 * np.log(10.0)] * 2)
    same = torch.zeros(2, 1, 2, requires_grad=True)
    entropy = nearest_neighbour_entropy(same, 1e-3)
    assert entropy.flatten().tolist() == pytest.approx([2.0 * np.log(2e-3)] * 2)
    entropy.sum().backward()
    assert same.grad is not None
    assert same.grad.abs().max() == 0.0


def test_untrained_networks_are_exact_for_gaussian_data():
    """The generator's start gives N(0, var_i I) from N(0, var_{i+1} I), and the energy's start is that Gaussian."""
    trainer = Trainer(Recipe(samples=1))
    random = torch.Generator().manual_seed(7)  # not the trainer's, which draws the noise
    for i, (time, target) in enumerate(pairwise(GRID)):
        spread, reached = (float(a * VARIANCE + 1.0 - a) for a in (trainer.abar_source[i], trainer.abar_target[i]))
        previous = spread**0.5 * torch.randn(20_000, 2, 1, 1, generator=random)
        with torch.no_grad():
            moved = trainer._generate(torch.full((20_000,), i), previous)[0]
        assert float(moved.var()) == pytest.approx(reached, rel=0.03), (time, target)
        energy = trainer.energy(sample=moved[:4], time=torch.full((4,), float(target)))
        assert energy.detach() == pytest.approx((moved[:4] ** 2).sum(dim=(1, 2, 3)) / (2.0 * reached), rel=1e-4)


def test_the_generator_is_finite_at_times_that_no_step_has():
    """Exporting tries graphs at any times, a target after the source among them."""
    generator = build("checkerboard-generator", GENERATOR_CONFIG).eval()
    time, target = (
        moment.flatten() for moment in torch.meshgrid(*[torch.arange(0.0, 1000.0, 111.0)] * 2, indexing="ij")
    )
    sample = torch.ones(len(time), 2, 1, 1)
    assert torch.isfinite(generator(sample=sample, time=time, target_time=target, latent=sample)).all()


def test_training_moves_both_networks_and_its_losses_are_finite():
    trainer = Trainer(Recipe(batch=32, samples=2))
    before = [network.state_dict()["perceptron.last.weight"].clone() for network in (trainer.generator, trainer.energy)]
    losses = [trainer.iterate(iteration) for iteration in range(3)]
    assert np.isfinite([value for entry in losses for value in entry.values()]).all()
    for network, weight in zip((trainer.generator, trainer.energy), before, strict=True):
        assert not torch.equal(network.state_dict()["perceptron.last.weight"], weight)


def test_rows_of_both_networks_are_independent():
    torch.manual_seed(0)
    generator, energy = (
        build("checkerboard-generator", GENERATOR_CONFIG).eval(),
        build("checkerboard-energy", ENERGY_CONFIG).eval(),
    )
    sample, latent = torch.randn(5, 2, 1, 1), torch.randn(5, 2, 1, 1)
    time, target = torch.tensor([999.0, 639, 359, 159, 39]), torch.tensor([639.0, 359, 159, 39, 0])
    together = generator(sample=sample, time=time, target_time=target, latent=latent)
    alone = [
        generator(
            sample=sample[i : i + 1], time=time[i : i + 1], target_time=target[i : i + 1], latent=latent[i : i + 1]
        )
        for i in range(5)
    ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    scored = torch.cat([energy(sample=sample[i : i + 1], time=target[i : i + 1]) for i in range(5)])
    assert torch.allclose(energy(sample=sample, time=target), scored, atol=1e-5)


@pytest.fixture(scope="module", autouse=True)
def single_thread():
    """Small networks on busy cores: threads would wait for each other longer than they work."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def shipped():
    card = load_checkpoint(ZOO / NAME)
    return card, load_modules(ZOO / NAME, card.modules)


def test_five_step_samples_of_the_shipped_model_meet_their_bars(shipped):
    """10,000 samples of seed 0: at least 95% on the support, all 8 cells, total variation at most 0.1."""
    card, modules = shipped
    program = compile_sample(card, SampleOptions(steps=5))
    result = run(program, card, networks_of(card, modules), seed=0, count=10_000)
    quality = board_quality(result.state.flatten(1).numpy())
    assert quality.support >= 0.95
    assert quality.covered == 8
    assert quality.total_variation <= 0.1


def test_every_scale_of_the_shipped_energy_scores_and_tells_the_board_from_its_gaps(shipped):
    card, modules = shipped
    networks = networks_of(card, modules)
    centres = np.array(CELLS) - 1.5
    both = np.concatenate([centres, centres * [-1, 1]]).astype(np.float32)[:, :, None, None]
    assert card.energy is not None
    for scale in card.energy.scales:
        assert len(scale.calibration) == 400
        result = run(compile_score(card, scale), card, networks, seed=0, count=16, images=torch.tensor(both))
        assert result.energy is not None
        assert torch.isfinite(result.energy).all()
        if scale.name == "t0":
            assert float(result.energy[:8].max()) < float(result.energy[8:].min())


def test_densities_of_the_shipped_energies_are_nearer_to_the_data_than_a_gaussian(shipped):
    """At the clean scale and the one next to it, where the data are far from a Gaussian."""
    card, modules = shipped
    grid = Grid(4.0, 160)
    mine = model_maps(card, modules["energy"], grid)

    def gaussian(places, time):
        signal, noise = scales()[int(time)]
        return (places**2).sum(axis=1) / (2.0 * (signal**2 * VARIANCE + noise**2))

    for time, amplitudes in scales().items():
        if time < 100:
            (base,) = energy_maps(gaussian, {float(time): amplitudes}, grid).values()
            assert mine[f"t{time}"].divergence < base.divergence


def test_the_picture_of_the_shipped_model_is_drawn(tmp_path):
    draw_checkpoint(ZOO / NAME, tmp_path / "board.png", count=200, grid=Grid(4.0, 40))
    assert (tmp_path / "board.png").read_bytes().startswith(b"\x89PNG")
