"""Pictures that the client writes and reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from server.client.images import (
    GAP,
    GAP_COLOUR,
    LARGEST,
    ImageFileError,
    decode_png,
    from_pixels,
    grid,
    layout,
    read_images,
    to_pixels,
)
from tests.bench.fake_server import SHAPE

from .pictures import save


def test_grid_places_every_pixel() -> None:
    """Images stand in rows, enlarged by whole pixels, each in a grey frame; empty places are grey."""
    pixels = np.arange(3 * 1 * 2 * 2, dtype=np.uint8).reshape(3, 1, 2, 2)
    page = grid(pixels, columns=2, scale=3)
    assert page.shape == (2 * (6 + GAP) + GAP, 2 * (6 + GAP) + GAP)
    expected = np.full(page.shape, GAP_COLOUR, np.uint8)
    for index, (top, left) in enumerate([(GAP, GAP), (GAP, 6 + 2 * GAP), (6 + 2 * GAP, GAP)]):
        expected[top : top + 6, left : left + 6] = np.kron(pixels[index, 0], np.ones((3, 3), np.uint8))
    np.testing.assert_array_equal(page, expected)


def test_grid_in_colour_enlarges_small_images_until_they_can_be_seen() -> None:
    """By default 8x8 pixels become 64x64, three channels stay three, and 9 images make 3 columns."""
    pixels = np.zeros((9, 3, 8, 8), np.uint8)
    pixels[4, 2] = 200
    page = grid(pixels)
    assert page.shape == (3 * 68 + 4, 3 * 68 + 4, 3)
    assert (page[72:136, 72:136] == (0, 0, 200)).all()


@pytest.mark.parametrize("arguments", [{"columns": 0}, {"scale": -1}])
def test_grid_refuses_a_size_of_nothing(arguments: dict[str, int]) -> None:
    """Zero columns and negative scales are refused by name."""
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}: must be at least 1"):
        grid(np.zeros((1, 1, 2, 2), np.uint8), **arguments)


@pytest.mark.parametrize("count", [1, 2, 4, 5, 9, 10, 50])
def test_the_layout_is_the_grids(count: int) -> None:
    """What is told of a grid before it is made is its size; without columns it is nearly square."""
    for columns, scale in ((None, None), (3, 2), (100, 1)):
        told = layout(count, (1, 2, 3), columns, scale)
        assert grid(np.zeros((count, 1, 2, 3), np.uint8), columns, scale).shape == (told.height, told.width)
    assert layout(count, (1, 2, 3)).columns == np.ceil(np.sqrt(count))


def test_a_grid_has_a_bound_on_its_pixels() -> None:
    """The largest that fits is laid out, one pixel of scale more is refused by the name of what is too large."""
    scale = int(LARGEST**0.5) - 2 * GAP
    assert layout(1, (1, 1, 1), scale=scale).height == scale + 2 * GAP
    with pytest.raises(ValueError, match=rf"^scale: .* {scale + 9}x{scale + 9} pixels, {LARGEST} are the most"):
        layout(1, (1, 1, 1), scale=scale + 1)
    with pytest.raises(ValueError, match=r"^images: a grid of 100000 images .* or write \.npy"):
        layout(100_000, (1, 8, 8))


@pytest.mark.parametrize("file", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_png_is_said_without_the_objects_name(file: bytes) -> None:
    """The reason is one for people, and no address in memory."""
    with pytest.raises(ImageFileError, match=r"^no PNG, or its header is broken$"):
        decode_png(file)


def test_pixels_and_values_map_both_ways() -> None:
    """Every 8-bit pixel survives the way to float and back, and what is out of range is clipped."""
    pixels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_pixels(from_pixels(pixels, -1, 1), -1, 1), pixels)
    np.testing.assert_array_equal(to_pixels(np.array([-9.0, 9.0]), -1, 1), [0, 255])


def test_pictures_are_converted_to_the_models_channels(tmp_path: Path) -> None:
    """A colour picture becomes grey for a grey model and a grey one becomes colour for a colour model."""
    colour = save(tmp_path / "colour.png", "RGB", colour=(255, 255, 255))
    grey = save(tmp_path / "grey.png", "L", colour=0)
    opaque = save(tmp_path / "opaque.png", "RGBA", colour=(0, 0, 0, 255))
    np.testing.assert_array_equal(read_images(colour, SHAPE, -1, 1), np.ones((1, *SHAPE)))
    np.testing.assert_array_equal(read_images(grey, (3, 4, 6), -1, 1), -np.ones((1, 3, 4, 6)))
    np.testing.assert_array_equal(read_images(opaque, SHAPE, -1, 1), -np.ones((1, *SHAPE)))


def test_pictures_that_do_not_fit_are_refused_with_the_reason(tmp_path: Path) -> None:
    """The message names the file, what it is and what the model takes."""
    (tmp_path / "text.png").write_text("no picture")
    cases = {
        save(tmp_path / "large.png", "L", (8, 8)): "must be 6x4 pixels, got 8x8",
        save(tmp_path / "deep.png", "I;16"): "must have 8 bits a channel",
        save(tmp_path / "glass.png", "RGBA", colour=(0, 0, 0, 7)): "transparent",
        tmp_path / "text.png": "no picture that can be read",
        tmp_path / "absent.png": "No such file",
    }
    for path, said in cases.items():
        with pytest.raises(ImageFileError, match=f"{path.name}: .*{said}"):
            read_images(path, SHAPE, -1, 1)


def test_arrays_that_do_not_fit_are_refused_and_never_unpickled(tmp_path: Path) -> None:
    """A .npy file must hold floats of the model's shape; an object array is not opened."""
    arrays = {
        "objects.npy": (np.array([print], dtype=object), "no plain NumPy array"),
        "bytes.npy": (np.zeros(SHAPE, np.uint8), "floating-point"),
        "shape.npy": (np.zeros((2, 1, 4, 4)), r"shape \(count, 1, 4, 6\), got \(2, 1, 4, 4\)"),
    }
    for name, (array, said) in arrays.items():
        np.save(tmp_path / name, array, allow_pickle=True)
        with pytest.raises(ImageFileError, match=f"{name}: .*{said}"):
            read_images(tmp_path / name, SHAPE, -1, 1)
