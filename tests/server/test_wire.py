"""What is said of images that are refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from models.card import ImageSpec
from protos import fewstep_pb2 as pb
from server.api.wire import decode_images
from server.errors import InvalidArgument

SPEC = ImageSpec(channels=1, height=4, width=6)


def refusal(message: pb.Images, spec: ImageSpec = SPEC) -> str:
    with pytest.raises(InvalidArgument) as caught:
        decode_images(message, spec, 4)
    return str(caught.value)


def raw(value: float) -> pb.Images:
    images = np.zeros((1, 1, 4, 6), "<f4")
    images[0, 0, 0, 0] = value
    return pb.Images(shape=images.shape, raw=images.tobytes())


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (np.nextafter(np.float32(1), np.float32(2)), "[0, 1.00000012]"),
        (np.nextafter(np.float32(-1), np.float32(-2)), "[-1.00000012, 0]"),
        (2.0, "[0, 2]"),
        (-255.0, "[-255, 0]"),
    ],
)
def test_a_value_out_of_range_differs_from_the_bound_in_the_message(value: float, got: str):
    """The float32 next to the bound is told apart from it, and plain numbers stay short."""
    assert refusal(raw(value)) == f"images.raw: values must be within [-1, 1], got {got}"


def broken() -> list[bytes]:
    buffer = io.BytesIO()
    Image.new("L", (6, 4)).save(buffer, "PNG")
    whole = buffer.getvalue()
    return [b"", b"no picture", whole[:8], whole[:20], whole[:45], whole[:30] + b"\0" + whole[31:]]


@pytest.mark.parametrize("file", broken(), ids=len)
def test_a_broken_png_is_refused_without_the_objects_name(file: bytes):
    """The message is for a caller: field, size and a reason, and no address in the server's memory."""
    said = refusal(pb.Images(encoding=pb.PNG, png=[file]))
    assert said.startswith("images.png[0]: is not a readable PNG of 6x4 pixels: ")
    assert "object" not in said
    assert " 0x" not in said
