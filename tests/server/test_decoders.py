"""Whatever bytes or values come in, decoders give a value or the error that they document, and never another one."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from models.calibrate import Calibration
from models.card import ImageSpec, ModelCard
from models.checkpoint import load_checkpoint
from models.samplers import SAMPLERS, available_samplers
from protos import fewstep_pb2 as pb
from protos import inference_pb2 as oip
from server.api import oip_wire
from server.api.validate import check_false_alarm_rate, check_priority, check_seed, sample_plan, score_plan
from server.api.wire import check_encoding, decode_images
from server.client import FewstepClient, FewstepError
from server.client.images import ImageFileError, read_images
from server.client.messages import _retry_after
from server.errors import FailedPrecondition, InvalidArgument, NotFound
from server.programs import ProgramCache

from ..conftest import ZOO

REFUSED = (InvalidArgument, NotFound, FailedPrecondition)
GREY = ImageSpec(channels=1, height=4, width=6)
COLOUR = ImageSpec(channels=3, height=4, width=6, low=0.0, high=1.0)
DEEP = ImageSpec(channels=5, height=4, width=6)
PARAMETERS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def png(mode: str, size: tuple[int, int] = (6, 4), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG", **options)
    return buffer.getvalue()


PICTURES = [
    *(png(mode) for mode in ("1", "L", "P", "RGB", "RGBA", "LA", "I;16")),
    png("L", (1, 1)),
    png("P", transparency=0),
    png("L", (3000, 3000)),
]


@st.composite
def pictures(draw: st.DrawFn) -> bytes:
    """PNG files, right, of other sizes and modes, and with damage; or no PNG at all."""
    if draw(st.integers(0, 5)) == 0:
        return draw(st.binary(max_size=100))
    data = bytearray(draw(st.sampled_from(PICTURES)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data) - 1))
        what = draw(st.sampled_from(["flip", "cut", "insert", "end"]))
        if what == "flip":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "cut":
            del data[at : at + draw(st.integers(1, 12))]
        elif what == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=12))
        else:
            del data[max(1, at) :]
        if not data:
            return b""
    return bytes(data)


SIZES = st.one_of(st.sampled_from([0, 1, 2, 3, 4, 6, -1]), st.integers(-(2**63), 2**63 - 1))
IMAGES = st.builds(
    lambda encoding, shape, raw, files: pb.Images(encoding=encoding, shape=shape, raw=raw, png=files),
    st.integers(0, 4),
    st.one_of(st.just([1, 1, 4, 6]), st.just([2, 3, 4, 6]), st.lists(SIZES, max_size=6)),
    st.one_of(st.just(b""), st.just(bytes(96)), st.binary(min_size=96, max_size=96), st.just(bytes(576)), st.binary()),
    st.one_of(st.just([]), st.lists(pictures(), max_size=3)),
)


@PARAMETERS
@given(message=IMAGES, spec=st.sampled_from([GREY, COLOUR, DEEP]), limit=st.integers(1, 3))
def test_images_are_decoded_or_refused(message: pb.Images, spec: ImageSpec, limit: int):
    """RAW and PNG: an array of the model's shape within its range, or InvalidArgument."""
    try:
        images = decode_images(message, spec, limit)
    except InvalidArgument:
        return
    assert images.dtype == np.float32
    assert images.shape[1:] == spec.shape
    assert 1 <= len(images) <= limit
    assert spec.low <= images.min() <= images.max() <= spec.high


@PARAMETERS
@given(encoding=st.integers(-(2**31), 2**31 - 1), spec=st.sampled_from([GREY, COLOUR, DEEP]))
def test_encodings_are_known_or_refused(encoding: int, spec: ImageSpec):
    """Every number that a message can hold."""
    try:
        assert check_encoding(encoding, spec) in (pb.RAW, pb.PNG)
    except InvalidArgument:
        return


# -- requests -----------------------------------------------------------------------------------------


class Model(SimpleNamespace):
    """What validation looks at of a model of the repository."""

    def __init__(self, card: ModelCard) -> None:
        scales = card.energy.scales if card.energy is not None else ()
        super().__init__(
            card=card,
            samplers=available_samplers(card),
            programs=ProgramCache(card),
            calibrations={s.name: Calibration(np.array(s.calibration)) for s in scales if s.calibration},
        )


MODELS = [Model(load_checkpoint(ZOO / name)) for name in ("digits-ddpm", "digits-vdrme")]
NUMBERS = st.one_of(st.floats(), st.sampled_from([0.0, 0.5, 1.0, 1e-300, 1e38, 1e308, float("nan"), float("inf")]))
COUNTS = st.one_of(
    st.integers(-3, 12), st.sampled_from([100, 101, 1000, 10_000, 10_001]), st.integers(-(2**63), 2**63 - 1)
)
TEXTS = st.one_of(st.text(max_size=5), st.just("x" * 1000))
SAMPLES = st.builds(
    lambda **fields: pb.SampleRequest(**{name: value for name, value in fields.items() if value is not None}),
    count=st.none() | COUNTS,
    steps=st.none() | COUNTS,
    sampler=st.sampled_from(["", *SAMPLERS]) | TEXTS,
    m=st.lists(NUMBERS, max_size=4),
    form=st.sampled_from(["", "iterate", "accumulator"]) | TEXTS,
    weights=st.lists(st.builds(lambda values: pb.Weights(values=values), st.lists(NUMBERS, max_size=4)), max_size=4),
    eta=st.none() | NUMBERS,
    guidance=st.none() | NUMBERS,
    temperature=st.none() | NUMBERS,
    step_size=st.none() | NUMBERS,
    spacing=st.sampled_from(["", "linear", "quadratic"]) | TEXTS,
    labels=st.lists(COUNTS, max_size=3),
    seed=st.none() | st.integers(0, 2**64 - 1),
    priority=st.integers(-12, 12) | st.integers(-(2**31), 2**31 - 1),
)


@settings(PARAMETERS, max_examples=400)
@given(request=SAMPLES, model=st.sampled_from(MODELS))
# Langevin options whose coefficients float32 cannot hold are admitted, and cost NumPy's warning.
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_requests_for_samples_are_planned_or_refused(request: pb.SampleRequest, model: Any):
    """Any value in any field: a program with a label a sample, or an error of the table."""
    try:
        plan = sample_plan(model, request, 64)
        check_priority(request)
    except REFUSED:
        return
    assert 1 <= len(plan.labels) <= 64
    assert plan.sampler in model.samplers
    assert len(plan.program.lines) >= 1
    assert 0 <= check_seed(request) < 2**64


SCORES = st.builds(
    lambda **fields: pb.ScoreRequest(**{name: value for name, value in fields.items() if value is not None}),
    scales=st.lists(st.sampled_from(["all", "t0", "t15", "", "nope"]) | TEXTS, max_size=4),
    false_alarm_rate=st.none() | NUMBERS | st.floats(0, 1),
    priority=st.integers(-12, 12),
)


@PARAMETERS
@given(request=SCORES, model=st.sampled_from(MODELS))
def test_requests_for_scores_are_planned_or_refused(request: pb.ScoreRequest, model: Any):
    """Any scales and any rate: programs of one line by name, or an error of the table."""
    try:
        plans = score_plan(model, request)
        rate = check_false_alarm_rate(model, request, [name for name, _ in plans])
    except REFUSED:
        return
    assert len(plans) >= 1
    assert all(len(program.lines) == 1 for _, program in plans)
    assert 0.0 < rate < 1.0


@PARAMETERS
@given(
    value=st.one_of(st.text(), st.text("0123456789.,;eE+-_ infa"), st.integers(), st.floats(), st.booleans(), st.none())
)
def test_parameters_of_the_open_inference_protocol_are_read_or_refused(value: Any):
    """Readers give a value or ValueError, whatever text or number comes."""
    readers = (
        oip_wire.integer(-5, 5), oip_wire.number, oip_wire.numbers, oip_wire.rows_of_numbers, oip_wire.names,
        oip_wire.text, oip_wire.flag,
    )  # fmt: skip
    for read in readers:
        try:
            read(value)
        except ValueError:
            continue


TENSORS = (
    oip_wire.Tensor("SEED", "UINT64", (1,), accepted=("INT64",)),
    oip_wire.Tensor("IMAGES", "FP32", (1, 2, 2), optional=True),
    oip_wire.Tensor("FLAG", "BOOL", (1,), optional=True),
)


@st.composite
def inferences(draw: st.DrawFn) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest()
    for _ in range(draw(st.integers(0, 3))):
        tensor = request.inputs.add(
            name=draw(st.sampled_from(["SEED", "IMAGES", "FLAG", "?"])),
            datatype=draw(st.sampled_from(["UINT64", "INT64", "FP32", "BOOL", "FP16", ""])),
            shape=draw(
                st.sampled_from([[1, 1], [2, 1], [1], [1, 1, 2, 2], [2, 1, 2, 2]]) | st.lists(SIZES, max_size=5)
            ),
        )
        if draw(st.booleans()):
            tensor.contents.uint64_contents.extend(draw(st.lists(st.integers(0, 2**64 - 1), max_size=3)))
            tensor.contents.fp32_contents.extend(draw(st.lists(st.floats(width=32), max_size=8)))
            tensor.contents.bool_contents.extend(draw(st.lists(st.booleans(), max_size=2)))
    sizes = st.sampled_from([0, 1, 2, 8, 16, 32])
    for _ in range(draw(st.integers(0, 3))):
        request.raw_input_contents.append(bytes(draw(sizes)) if draw(st.booleans()) else draw(st.binary(max_size=20)))
    return request


@settings(PARAMETERS, max_examples=300)
@given(request=inferences())
def test_tensors_of_the_open_inference_protocol_are_read_or_refused(request: oip.ModelInferRequest):
    """Any names, datatypes, shapes and contents: arrays with one number of rows, or InvalidArgument."""
    try:
        arrays = oip_wire.read_inputs(request, TENSORS, 8)
    except InvalidArgument:
        return
    assert "SEED" in arrays
    assert len({len(array) for array in arrays.values()}) == 1


# -- the client ---------------------------------------------------------------------------------------


@PARAMETERS
@given(message=IMAGES)
@example(message=pb.Images(shape=[0, 0, 0, 1 << 61]))
def test_the_client_decodes_images_or_raises_its_own_error(message: pb.Images):
    """What a server sends is an array of four dimensions, or a FewstepError."""
    with FewstepClient("127.0.0.1:1") as client:
        client._ranges["toy", 1] = (-1.0, 1.0)
        try:
            images = client._images(message, "toy", 1)
        except FewstepError:
            return
    assert images.ndim == 4
    assert images.dtype == np.float32


@PARAMETERS
@given(
    data=st.one_of(
        st.binary(max_size=60),
        st.builds(
            lambda value, name: status_pb2.Status(
                details=[any_pb2.Any(type_url=f"type.googleapis.com/{name}", value=value)]
            ).SerializeToString(),
            st.binary(max_size=20),
            st.sampled_from([error_details_pb2.RetryInfo.DESCRIPTOR.full_name, "google.rpc.BadRequest", "x"]),
        ),
    )
)
def test_the_client_reads_a_delay_or_none(data: bytes):
    """Details of an error that cannot be read leave the error itself as it is."""
    delay = _retry_after(data)
    assert delay is None or isinstance(delay, float)


def array_file(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


ARRAYS = [
    array_file(np.zeros((2, 1, 4, 6), np.float32)),
    array_file(np.zeros((1, 4, 6))),
    array_file(np.zeros(3, np.int64)),
    array_file(np.zeros((1, 4, 6), "datetime64[s]")),
]


@PARAMETERS
@given(data=st.data())
def test_image_files_are_read_or_refused(tmp_path: Path, data: st.DataObject):
    """Arrays and pictures, whole, damaged or of any bytes: images of the model's shape, or ImageFileError."""
    if data.draw(st.booleans()):
        path, content = tmp_path / "x.png", data.draw(pictures())
    else:
        path = tmp_path / "x.npy"
        bent = bytearray(data.draw(st.sampled_from(ARRAYS)))
        for _ in range(data.draw(st.integers(0, 3))):
            bent[data.draw(st.integers(0, len(bent) - 1))] = data.draw(st.integers(0, 255))
        start = data.draw(st.sampled_from([b"", b"", b"", b"PK\x03\x04", b"\x80\x04"]))
        content = start + bytes(bent[: data.draw(st.integers(0, len(bent)))])
    path.write_bytes(content)
    try:
        images = read_images(path, (1, 4, 6), -1.0, 1.0)
    except ImageFileError as error:
        assert str(path) in str(error)
        return
    assert images.shape[1:] == (1, 4, 6)
    assert images.dtype == np.float32


def test_what_is_no_message_is_a_decode_error():
    """The one exception of protobuf's parser that the server turns into INVALID_ARGUMENT."""
    with pytest.raises(DecodeError):
        pb.SampleRequest.FromString(b"\xff\xff\xff\xff")
