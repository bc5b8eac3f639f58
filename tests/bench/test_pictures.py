"""Pictures are drawn from whatever was measured, including little and nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from bench.board import GRID, Board
from bench.pictures import SampleRow, ScoredSet, draw_quality, draw_samples, draw_scores


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L"))


def test_samples_show_every_image_in_its_row(tmp_path: Path) -> None:
    """White images are white squares, as many as there are rows and columns; other rows stay black."""
    white, black = np.ones((5, 1, 8, 8), np.float32), -np.ones((5, 1, 8, 8), np.float32)
    groups = {"one": [SampleRow("4", "", black), SampleRow("8", "", black)], "two": [SampleRow("4", "", black)]}
    draw_samples(tmp_path / "black.png", groups, "", "")
    groups["one"][1] = SampleRow("8", "", white)
    draw_samples(tmp_path / "white.png", groups, "", "")
    before, after = pixels(tmp_path / "black.png"), pixels(tmp_path / "white.png")
    changed = before != after
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    assert changed[rows[0] : rows[-1] + 1].any(axis=1).all()  # one row of images
    assert (np.diff(columns) > 1).sum() == 4  # five images with gaps between them
    assert changed.sum() == 5 * 72 * 72


def test_the_checkerboard_stands_below_the_samples(tmp_path: Path) -> None:
    """The picture grows by the board, whose points are drawn where they are: more points, more ink."""
    groups = {"one": [SampleRow("4", "", -np.ones((16, 1, 8, 8), np.float32))]}
    rng = np.random.default_rng(0)
    energy = rng.normal(size=(GRID, GRID))
    many, few = rng.uniform(-2, 2, (2000, 2)), np.zeros((1, 2))
    draw_samples(tmp_path / "without.png", groups, "", "")
    for name, points in (("many", many), ("few", few)):
        draw_samples(tmp_path / f"{name}.png", groups, "", "", Board(many, points, energy, "note", 5))
    without, dense, sparse = (pixels(tmp_path / f"{name}.png") for name in ("without", "many", "few"))
    assert dense.shape[0] > without.shape[0] + 200
    assert dense.shape == sparse.shape
    assert dense.mean() < sparse.mean()


def test_samples_in_colour(tmp_path: Path) -> None:
    """Three channels are drawn in colour."""
    red = np.full((1, 3, 4, 4), -1, np.float32)
    red[:, 0] = 1
    draw_samples(tmp_path / "red.png", {"one": [SampleRow("1", "", red)]}, "", "")
    with Image.open(tmp_path / "red.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24) or []}
    assert (255, 0, 0) in colours


def test_scores_take_energies_of_any_size(tmp_path: Path) -> None:
    """Sets that are far away, constant, or equal to the digits are drawn, with and without a threshold."""
    rng = np.random.default_rng(0)
    inside = rng.normal(size=300)
    outside = {"far": rng.normal(1e6, 1, 300), "same": inside, "constant": np.full(7, 2.0), "low": inside - 1e3}
    sets = [ScoredSet(name, "far", energy, "") for name, energy in outside.items()]
    for digits, shown, threshold in ((inside, sets, 1.6), (np.zeros(3), sets[2:3], None)):
        draw_scores(tmp_path / "scores.png", digits, shown, threshold, 0.05, "energy", "foot")
        assert pixels(tmp_path / "scores.png").min() < 100


def test_quality_curves(tmp_path: Path) -> None:
    """One curve a method over its numbers of evaluations."""
    curves = {"DDIM": [(4, 75.0), (10, 33.0)], "VDRME": [(4, 60.0), (6, 50.0), (8, 55.0)]}
    draw_quality(tmp_path / "quality.png", curves, 8.6, "title", "foot")
    assert pixels(tmp_path / "quality.png").min() < 100
