"""Images as files: PNG and .npy to arrays, arrays to one grid that a person can look at.

Values in `[low, high]` and 8-bit pixels are mapped linearly: low is 0, high is 255.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

VISIBLE = 64
"""Pixels: an image smaller than this is enlarged by a whole factor until it is at least as large."""
GAP = 4
GAP_COLOUR = 128
LARGEST = 2**28 // 3
"""Pixels of a grid: what Pillow opens without a warning, 256 MiB in colour."""


class ImageFileError(ValueError):
    """A file that is no image for this model; the message names the file, what it holds and what is wanted."""


def to_pixels(images: NDArray[np.floating], low: float, high: float) -> NDArray[np.uint8]:
    """Round images with values in `[low, high]` to 8 bits; what lies outside is clipped."""
    pixels: NDArray[np.uint8] = np.clip(np.rint((images - low) * (255.0 / (high - low))), 0, 255).astype(np.uint8)
    return pixels


def from_pixels(pixels: NDArray[np.uint8], low: float, high: float) -> NDArray[np.float32]:
    """8-bit pixels as float32 in `[low, high]`."""
    return (low + pixels * ((high - low) / 255.0)).astype(np.float32)


def decode_png(file: bytes) -> NDArray[np.uint8]:
    """The pixels of a PNG file, `(channels, height, width)`; one channel for grey, three for colour.

    Raises:
        ImageFileError: no PNG. OSError, SyntaxError, ValueError: a broken one, in Pillow's words.
    """
    try:
        opened = Image.open(io.BytesIO(file), formats=["PNG"])
    except UnidentifiedImageError:  # whose own words name the object that was read from, and no reason
        raise ImageFileError("no PNG, or its header is broken") from None
    with opened as image:
        pixels = np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    return pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


class Layout(NamedTuple):
    """How a grid is laid out: columns, pixels a pixel, and its height and width in pixels."""

    columns: int
    scale: int
    height: int
    width: int


def layout(count: int, shape: tuple[int, int, int], columns: int | None = None, scale: int | None = None) -> Layout:
    """The grid of `count` images of `shape` (channels, height, width); columns and scale as in `grid`.

    Raises:
        ValueError: no images, neither 1 nor 3 channels, columns or scale below 1, or a grid of more pixels than
            `LARGEST`; names the argument.
    """
    channels, height, width = shape
    if count < 1 or channels not in (1, 3):
        raise ValueError(f"images: a grid takes at least one, of 1 or 3 channels, got shape {(count, *shape)}")
    for name, value in (("columns", columns), ("scale", scale)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: must be at least 1, got {value}")
    columns = min(columns or math.isqrt(count - 1) + 1, count)
    given, scale = scale, scale or max(1, math.ceil(VISIBLE / min(height, width)))
    rows = -(-count // columns)
    height, width = rows * (height * scale + GAP) + GAP, columns * (width * scale + GAP) + GAP
    if height * width > LARGEST:
        raise ValueError(
            f"{'images' if given is None else 'scale'}: a grid of {count} images at scale {scale} would have"
            f" {width}x{height} pixels, {LARGEST} are the most; take a smaller scale or fewer images, or write .npy"
        )
    return Layout(columns, scale, height, width)


def grid(pixels: NDArray[np.uint8], columns: int | None = None, scale: int | None = None) -> NDArray[np.uint8]:
    """Lay images out row by row, enlarged by whole pixels, with a grey frame around each.

    pixels: `(count, channels, height, width)`, 1 or 3 channels. columns: default makes it nearly square.
    scale: pixels a pixel; default enlarges small images to at least `VISIBLE`.

    Returns: `(rows * (scale * height + GAP) + GAP, columns * (scale * width + GAP) + GAP)`, with a last
    axis of 3 for colour. Places without an image are left grey.

    Raises:
        ValueError: as `layout`.
    """
    count, channels, height, width = pixels.shape
    columns, scale, *size = layout(count, (channels, height, width), columns, scale)
    height, width = height * scale, width * scale
    page = np.full((*size, channels), GAP_COLOUR, dtype=np.uint8)
    for index, image in enumerate(pixels):
        top = GAP + (index // columns) * (height + GAP)
        left = GAP + (index % columns) * (width + GAP)
        page[top : top + height, left : left + width] = (
            image.repeat(scale, axis=1).repeat(scale, axis=2).transpose(1, 2, 0)
        )
    return page[:, :, 0] if channels == 1 else page


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write `(height, width)` or `(height, width, 3)` pixels; makes the folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG")


def read_images(path: Path, shape: tuple[int, int, int], low: float, high: float) -> NDArray[np.float32]:
    """Read an image file, or an array of images, for a model that takes `shape` with values in `[low, high]`.

    A picture is turned into grey or colour as the model wants; its size must be the model's.
    A .npy file holds `(channels, height, width)` or `(count, channels, height, width)` floating-point values,
    already in the model's range; nothing in it is ever unpickled.

    Returns: `(count, channels, height, width)` float32.

    Raises:
        ImageFileError: missing, unreadable, or of another size or kind.
    """
    try:
        if path.suffix.lower() == ".npy":
            return _read_array(path, shape)
        return from_pixels(_read_picture(path, shape), low, high)[np.newaxis]
    except OSError as error:
        raise ImageFileError(f"{path}: {error.strerror or error}") from error


def _read_array(path: Path, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    try:
        with path.open("rb") as file:
            # Not np.load, which takes zip archives too.
            array = np.lib.format.read_array(file, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # the header is parsed as Python, and fails in as many ways
        raise ImageFileError(f"{path}: no plain NumPy array: {error}") from error
    if not np.issubdtype(array.dtype, np.floating):
        raise ImageFileError(f"{path}: must hold floating-point values in the model's range, got {array.dtype}")
    if array.ndim not in (3, 4) or array.shape[-3:] != shape:
        wanted = ", ".join(map(str, shape))
        raise ImageFileError(f"{path}: must have shape (count, {wanted}), got {array.shape}")
    return array.reshape(-1, *shape).astype(np.float32)


def _read_picture(path: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    channels, height, width = shape
    if channels not in (1, 3):
        raise ImageFileError(f"{path}: the model takes {channels} channels; pictures have 1 or 3, so use .npy")
    try:
        with Image.open(path) as image:
            if image.size != (width, height):  # known before a pixel is decoded, so a huge file costs nothing
                raise ImageFileError(f"{path}: must be {width}x{height} pixels, got {image.width}x{image.height}")
            if image.mode.startswith(("I", "F")):
                raise ImageFileError(f"{path}: must have 8 bits a channel, got mode {image.mode}")
            if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
                raise ImageFileError(f"{path}: has transparent pixels, whose colour is undefined")
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise ImageFileError(f"{path}: no picture that can be read: {error}") from error
    return pixels[np.newaxis] if channels == 1 else pixels.transpose(2, 0, 1)
