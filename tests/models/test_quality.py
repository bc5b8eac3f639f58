"""`python -m models quality`: which rows there are, what is measured of them, and what is written."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from rich.console import Console

from models.checkpoint import load_checkpoint, save_checkpoint
from models.data import load_digits_split
from models.metrics.frechet import FrechetDigits
from models.metrics.outliers import unseen_digits
from models.program import SAMPLE
from models.quality import command
from models.quality.layers import layer_energy, layers_table, measure_layers
from models.quality.measure import Checkpoint, diversity, measure_energies, measure_row
from models.quality.near import unseen_pool
from models.quality.report import auroc_table
from models.quality.rows import QualityRow, rows_of
from models.samplers import SampleOptions
from models.train import ddpm as ddpm_training
from models.train import vdrme
from models.train.near import NAME as NEAR
from models.train.near import train_digits_0_4

from ..conftest import ZOO


@pytest.fixture(scope="module")
def ddpm() -> Checkpoint:
    return Checkpoint(ZOO / "digits-ddpm")


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An energy of the digits 0 to 4 after a few steps of its training."""
    few = vdrme.Recipe(denoising_steps=1, energy_warmup=1, iterations=1, batch=8)
    output = tmp_path_factory.mktemp("near")
    return train_digits_0_4(output, lambda *_: None, ddpm_training.Recipe(steps=2, batch=8), few)


def test_every_setting_is_a_row_and_those_of_other_models_are_not():
    """Guided rows ask for labels, trained grids give a row for each number of steps, latents have one without them."""
    rows = list(rows_of(load_checkpoint(ZOO / "digits-ddpm")))
    assert {row.options.sampler for row in rows} == {"iddim", "ddim", "radical", "ancestral"}
    assert all(row.labelled for row in rows if row.options.guidance is not None)
    assert not any(row.quiet for row in rows)
    vdrme = list(rows_of(load_checkpoint(ZOO / "digits-vdrme")))
    assert [row.options.steps for row in vdrme if not (row.labelled or row.quiet)] == [4, 6, 8]
    assert [row.setting for row in vdrme if row.quiet] == ["vdrme steps=4, latents 0"]
    assert len({row.setting + str(row.labelled) for row in rows}) == len(rows)


def test_samples_are_keyed_by_the_seed_and_labelled_in_turn(ddpm: Checkpoint):
    """One seed gives one set of samples, another one others; labels go 0, 1, .. 9, 0."""
    row = QualityRow("digits-ddpm", SampleOptions(sampler="ddim", steps=2), labelled=True)
    first, labels = ddpm.samples(row, 12, seed=1)
    again, _ = ddpm.samples(row, 12, seed=1)
    other, _ = ddpm.samples(row, 12, seed=2)
    assert np.array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    assert labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    unlabelled, none = ddpm.samples(replace(row, labelled=False), 12, seed=1)
    assert none is None
    assert np.abs(unlabelled - first).max() > 0.1


def test_quiet_rows_see_latents_of_zero():
    """The ablation of the noise input hands the network zeros, and nothing else changes."""
    vdrme = Checkpoint(ZOO / "digits-vdrme")
    seen: list[torch.Tensor] = []
    generator = vdrme.networks["generator"]

    def spy(**inputs):
        seen.append(inputs["latent"].clone())
        return generator(**inputs)

    vdrme.networks["generator"] = spy
    row = QualityRow("digits-vdrme", SampleOptions(sampler="vdrme", steps=4))
    loud, _ = vdrme.samples(row, 3, seed=0)
    assert all(float(latent.abs().max()) > 0.5 for latent in seen)
    seen.clear()
    quiet, _ = vdrme.samples(replace(row, quiet=True), 3, seed=0)
    assert all(float(latent.abs().max()) == 0.0 for latent in seen)
    assert np.abs(loud - quiet).max() > 1e-3


def test_diversity_is_the_variance_within_a_label():
    """Two labels, each of one image alone, have none; without labels they have that of the two."""
    images = np.zeros((4, 1, 8, 8), dtype=np.float32)
    images[1::2] = 1.0
    labels = np.array([0, 1, 0, 1])
    assert diversity(images, labels) == 0.0
    assert diversity(images, None) == pytest.approx(64 * 0.25)


def test_a_row_holds_means_over_the_seeds(ddpm: Checkpoint):
    """The row's FD is the mean of what single seeds give, its deviation theirs, and its cost the program's."""
    metric = FrechetDigits.load()
    row = QualityRow("digits-ddpm", SampleOptions(sampler="ddim", steps=3, guidance=1.0), labelled=True)
    both = measure_row(ddpm, metric, row, 30, (0, 1))
    single = [measure_row(ddpm, metric, row, 30, (seed,)).frechet.mean for seed in (0, 1)]
    assert both.frechet.mean == pytest.approx(np.mean(single))
    assert both.frechet.deviation == pytest.approx(np.std(single, ddof=1))
    assert (both.nfe, both.gradient_passes) == (6, 0)
    assert sum(both.class_histogram) == pytest.approx(1.0)
    assert both.label_accuracy > 0.5


def test_the_command_writes_table_data_and_pictures(tmp_path):
    """JSON, Markdown and two pictures, with the commit, for one model of digits and its baselines."""
    checkpoint = tmp_path / "digits-vdrme"
    shutil.copytree(ZOO / "digits-vdrme", checkpoint)
    card = load_checkpoint(checkpoint)
    energy = msgspec.structs.replace(card.energy, scales=card.energy.scales[:1])
    save_checkpoint(checkpoint, msgspec.structs.replace(card, energy=energy))
    parsed = _parse([str(checkpoint), "--count", "12", "--seeds", "1", "--output", str(tmp_path)])
    assert command.main(parsed, Console(quiet=True)) == 0
    found = json.loads((tmp_path / "quality.json").read_text())
    assert len(found["rows"]) == 5
    (measured,) = found["measured"]
    assert measured["models"] == ["digits-vdrme"]
    assert {"commit", "cpu", "versions"} <= set(measured)
    text = (tmp_path / "quality.md").read_text()
    assert "| digits-vdrme | vdrme steps=8 |" in text
    assert "nearest-neighbours" in text
    for name in ("frechet.png", "detection.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_near_set_is_measured_with_what_saw_the_known_digits_alone(near: Path, tmp_path):
    """The command puts that model and baselines of the same images into a table of their own, with every seed."""
    parsed = _parse([str(near), "--seeds", "2", "--output", str(tmp_path)])
    assert command.main(parsed, Console(quiet=True)) == 0
    found = json.loads((tmp_path / "quality.json").read_text())
    names = [entry["detector"] for entry in found["near"]]
    assert names[0] == f"{NEAR} t0"
    assert names[-4:] == ["nearest-neighbours", "mahalanobis", "gaussian-mixture", "maximum-softmax"]
    known = load_digits_split().test.select(range(5))
    for entry in found["near"]:
        (result,) = entry["results"]
        assert (result["name"], result["category"], result["seeds"]) == ("unseen", "near", [0, 1])
        assert result["id_count"] == result["ood_count"] == len(known)
        assert result["auroc_interval"]["low"] <= result["metrics"]["auroc"] <= result["auroc_interval"]["high"]
    assert all(not entry["detector"].startswith(NEAR) for entry in found["detectors"])
    assert "### Digits 0-4 against 5-9" in (tmp_path / "quality.md").read_text()


def test_the_unseen_digits_are_all_that_training_left_out(near: Path):
    """The pool holds every image of 5 to 9 and no other; the energy's calibration holds none of them."""
    split = load_digits_split()
    parts = (split.train, split.calibration, split.test)
    assert len(unseen_pool(split)) == sum(int((part.labels >= 5).sum()) for part in parts)
    card = load_checkpoint(near)
    assert card.training["digits"] == [0, 1, 2, 3, 4]
    assert len(card.energy.scales[0].calibration) == len(split.calibration.select(range(5)))


def test_chains_are_measured_with_one_seed(monkeypatch):
    """Scores of few network evaluations get every seed, those of chains the first, and the table says so."""
    latent = Checkpoint(ZOO / "digits-latent")
    monkeypatch.setattr(latent, "energy", lambda scale, images: images.mean(axis=(1, 2, 3)).astype(float))
    test = load_digits_split().test.images[:8]
    found = measure_energies(latent, test, (0, 1, 2), lambda _: None, [unseen_digits(test)])
    assert [entry.seeds for entry in found] == [3, 3, 3, 1, 1, 1]
    assert auroc_table(found).splitlines()[2].startswith("| digits-latent inference-0 | 3 |")


def test_the_top_layer_alone_is_what_is_above_all_others():
    """A layer's own energy is that of its scale where there is one; the others are other functions."""
    latent = Checkpoint(ZOO / "digits-latent")
    images = load_digits_split().test.images[:20]
    above = [latent.energy(scale, images) for scale in latent.card.energy.scales[:3]]
    alone = [layer_energy(latent, layer, images) for layer in (1, 2, 3)]
    np.testing.assert_allclose(alone[2], above[2], rtol=1e-5)
    assert not np.allclose(alone[0], above[0])
    assert not np.allclose(alone[1], above[1])


def test_layers_stand_beside_the_layers_above(monkeypatch):
    """One line a set and their mean: both schemes, what leaving out layers changes, and each layer alone."""
    latent = Checkpoint(ZOO / "digits-latent")
    brightness = {"inference-0": 1.0, "inference-2": -1.0}
    monkeypatch.setattr(
        latent, "energy", lambda scale, images: brightness.get(scale.name, 0.0) * images.mean(axis=(1, 2, 3))
    )
    test = load_digits_split().test.images[:8]
    detectors = measure_energies(latent, test, (0,), lambda _: None)
    layers = measure_layers(latent, test, (0,), lambda _: None)
    lines = [line.split(" | ") for line in layers_table("digits-latent", detectors, layers).splitlines()]
    heading, by_set = lines[0], {line[0].removeprefix("| "): line for line in lines[2:]}
    assert len({len(line) for line in lines}) == 1
    assert heading[4] == "k = 2 less k = 0"
    assert by_set["inversion"][1:5] == ["1.000", "0.500", "0.000", "-1.000"]
    assert by_set["inversion"][5:9] == ["0.500", "0.500", "0.500", "+0.000"]
    assert float(by_set["mean"][4]) == pytest.approx(float(by_set["mean"][3]) - float(by_set["mean"][1]), abs=2e-3)


def test_an_update_takes_the_place_of_its_models_alone(tmp_path):
    """Rows of other models stay, those of the same model are new, and each says where it was measured."""
    for name in ("digits-ddpm", "digits-vdrme", "digits-ddpm"):
        arguments = [str(ZOO / name), "--count", "4", "--seeds", "1", "--rows", "steps=4", "--output", str(tmp_path)]
        again = ["--update"] if (tmp_path / "quality.json").exists() else []
        command.main(_parse([*arguments, *again]), Console(quiet=True))
    found = json.loads((tmp_path / "quality.json").read_text())
    assert [entry["models"] for entry in found["measured"]] == [["digits-vdrme"], ["digits-ddpm"]]
    models = [row["row"]["model"] for row in found["rows"]]
    assert models == sorted(models)
    settings = [(row["row"]["model"], row["setting"], row["row"]["labelled"]) for row in found["rows"]]
    assert len(settings) == len(set(settings))
    assert {"digits-ddpm", "digits-vdrme"} == set(models)


def test_an_update_of_another_count_is_refused(tmp_path):
    """Numbers of different counts do not stand in one table; nothing is measured before that is said."""
    arguments = [str(ZOO / "digits-ddpm"), "--seeds", "1", "--rows", "ddim steps=4", "--output", str(tmp_path)]
    command.main(_parse([*arguments, "--count", "4"]), Console(quiet=True))
    with pytest.raises(SystemExit, match=r"--update: .*count of 4 and 1 seeds, not 6 and 1"):
        command.main(_parse([*arguments, "--count", "6", "--update"]), Console(quiet=True))


def test_rows_can_be_chosen_by_their_setting(tmp_path):
    """--rows leaves out the other rows, and the energies."""
    parsed = _parse([str(ZOO / "digits-ddpm"), "--count", "4", "--seeds", "1", "--rows", "ddim steps=4"])
    parsed.output = tmp_path
    command.main(parsed, Console(quiet=True))
    found = json.loads((tmp_path / "quality.json").read_text())
    assert [row["setting"] for row in found["rows"]] == ["iddim steps=4, m=1", "ddim steps=4"]
    assert found["detectors"] == []


def _parse(arguments: list[str]):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(arguments)


def test_the_sample_register_is_what_comes_back():
    """`sample` is the register that every card has first: the one that the metrics are taken of."""
    assert next(iter(load_checkpoint(ZOO / "digits-vdrme").register_shapes())) == SAMPLE
