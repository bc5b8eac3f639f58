"""Messages <-> images: raw float32 or PNG on the wire, float32 arrays inside."""

from __future__ import annotations

import io
import math

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from models.card import ImageSpec
from protos import fewstep_pb2 as pb

from ..errors import InvalidArgument

Floats = npt.NDArray[np.float32]

PNG_MODES = ("1", "L", "P", "RGB")  # as Pillow names what it reads: up to 8 bits a channel, no alpha
_MODES = {1: "L", 3: "RGB"}


def decode_images(message: pb.Images, spec: ImageSpec, limit: int) -> Floats:
    """The images of a message: `(count, channels, height, width)` float32 in the model's range.

    limit: the largest number of images accepted.

    Raises:
        InvalidArgument: wrong encoding, shape or size, non-finite or out-of-range values, or a PNG
            that is broken, of another size, of 16 bits or transparent; names the field.
    """
    encoding = message.encoding or pb.RAW
    if encoding == pb.RAW:
        images = _decode_raw(message, spec, limit)
    elif encoding == pb.PNG:
        images = _decode_png(message, spec, limit)
    else:
        raise InvalidArgument("images.encoding", f"must be RAW or PNG, got {encoding}")
    return images


def _decode_raw(message: pb.Images, spec: ImageSpec, limit: int) -> Floats:
    if message.png:
        raise InvalidArgument("images.png", "given with encoding RAW; set encoding to PNG")
    expected = f"(count, {', '.join(map(str, spec.shape))})"
    if len(message.shape) != 4:
        raise InvalidArgument("images.shape", f"must be {expected}, got {len(message.shape)} sizes")
    shape = tuple(message.shape)
    if shape[1:] != spec.shape or shape[0] < 1:
        raise InvalidArgument("images.shape", f"must be {expected}, got {shape}")
    if shape[0] > limit:
        raise InvalidArgument("images.shape", f"{shape[0]} images, at most {limit} a request")
    wanted = 4 * math.prod(shape)
    raw = message.raw  # each look at the field makes a copy
    if len(raw) != wanted:
        raise InvalidArgument("images.raw", f"must hold {wanted} bytes for shape {shape} float32, got {len(raw)}")
    images = np.frombuffer(raw, dtype="<f4").reshape(shape).astype(np.float32, copy=False)
    check_values(images, spec, "images.raw")
    return images


def check_values(images: Floats, spec: ImageSpec, field: str) -> None:
    """Raises InvalidArgument, with the field's name, where a value is not finite or out of the model's range."""
    if not np.isfinite(images).all():
        bad = int(np.argmin(np.isfinite(images).reshape(len(images), -1).all(1)))
        raise InvalidArgument(field, f"image {bad} holds a value that is not finite")
    low, high = float(images.min()), float(images.max())
    if low < spec.low or high > spec.high:
        # Nine digits tell every float32 from its neighbours, and so a value just outside from the bound.
        bounds, got = f"[{spec.low:.9g}, {spec.high:.9g}]", f"[{low:.9g}, {high:.9g}]"
        raise InvalidArgument(field, f"values must be within {bounds}, got {got}")


def _decode_png(message: pb.Images, spec: ImageSpec, limit: int) -> Floats:
    if message.raw:
        raise InvalidArgument("images.raw", "given with encoding PNG; set encoding to RAW")
    if not 1 <= len(message.png) <= limit:
        raise InvalidArgument("images.png", f"must hold 1 to {limit} images, got {len(message.png)}")
    mode = _png_mode(spec)
    images = np.empty((len(message.png), *spec.shape), dtype=np.float32)
    for index, data in enumerate(message.png):
        field = f"images.png[{index}]"
        try:
            picture = Image.open(io.BytesIO(data), formats=("PNG",))
            # The size stands in the header: a bomb is refused before any of it is unpacked.
            if picture.size != (spec.width, spec.height):
                got = f"{picture.size[0]}x{picture.size[1]}"
                raise InvalidArgument(field, f"must be {spec.width}x{spec.height} pixels, got {got}")
            _check_mode(picture, field)
            pixels = np.asarray(picture.convert(mode), dtype=np.float32)
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            # Pillow's own words for what it does not recognise name the object that it read from, and no reason.
            reason = "its header cannot be read" if isinstance(error, UnidentifiedImageError) else error
            size = f"{spec.width}x{spec.height}"
            raise InvalidArgument(field, f"is not a readable PNG of {size} pixels: {reason}") from None
        values = pixels * ((spec.high - spec.low) / 255.0) + spec.low
        images[index] = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    return images


def _check_mode(picture: Image.Image, field: str) -> None:
    """Raises InvalidArgument for what a conversion would lose without a word: 16 bits, or transparency."""
    if picture.mode not in PNG_MODES:
        raise InvalidArgument(field, f"must be a PNG of mode {', '.join(PNG_MODES)}, got {picture.mode}")
    if "transparency" in picture.info:
        raise InvalidArgument(field, f"must be a PNG without transparency, got one of mode {picture.mode} with it")


def encode_images(images: Floats, spec: ImageSpec, encoding: int) -> pb.Images:
    """`(count, channels, height, width)` float32 as a message; PNG clips to the range and rounds to 8 bits."""
    if encoding != pb.PNG:
        return pb.Images(encoding=pb.RAW, shape=images.shape, raw=np.ascontiguousarray(images, dtype="<f4").tobytes())
    mode = _png_mode(spec)
    scaled = (np.clip(images, spec.low, spec.high) - spec.low) * (255.0 / (spec.high - spec.low))
    pixels = np.rint(scaled).astype(np.uint8)
    files = []
    for picture in pixels:
        buffer = io.BytesIO()
        Image.fromarray(picture[0] if mode == "L" else np.ascontiguousarray(picture.transpose(1, 2, 0)), mode).save(
            buffer, "PNG"
        )
        files.append(buffer.getvalue())
    return pb.Images(encoding=pb.PNG, shape=images.shape, png=files)


def check_encoding(encoding: int, spec: ImageSpec) -> int:
    """The output encoding asked for; RAW by default.

    Raises:
        InvalidArgument: unknown, or PNG for images that have no PNG mode.
    """
    if encoding not in (pb.ENCODING_UNSPECIFIED, pb.RAW, pb.PNG):
        raise InvalidArgument("encoding", f"must be RAW or PNG, got {encoding}")
    if encoding == pb.PNG:
        _png_mode(spec)
    return encoding or pb.RAW


def _png_mode(spec: ImageSpec) -> str:
    mode = _MODES.get(spec.channels)
    if mode is None:
        raise InvalidArgument("encoding", f"PNG holds 1 or 3 channels, the model has {spec.channels}; use RAW")
    return mode
