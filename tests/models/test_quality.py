"""`python -m models quality`: which rows there are, what is measured of them, and what is written."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from rich.console import Console

from models.checkpoint import load_checkpoint, save_checkpoint
from models.metrics.frechet import FrechetDigits
from models.program import SAMPLE
from models.quality import command
from models.quality.measure import Checkpoint, diversity, measure_row
from models.quality.rows import QualityRow, rows_of
from models.samplers import SampleOptions

from ..conftest import ZOO


@pytest.fixture(scope="module")
def ddpm() -> Checkpoint:
    return Checkpoint(ZOO / "digits-ddpm")


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
    assert {"commit", "cpu", "versions"} <= set(found)
    text = (tmp_path / "quality.md").read_text()
    assert "| digits-vdrme | vdrme steps=8 |" in text
    assert "nearest-neighbours" in text
    for name in ("frechet.png", "detection.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


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
