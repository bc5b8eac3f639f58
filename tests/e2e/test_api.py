"""The API from outside: what it answers to good and to bad requests, and that it goes on afterwards."""

from __future__ import annotations

import io
import json
import threading
import time
from pathlib import Path
from urllib.request import urlopen

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.data import load_digits_split
from protos import fewstep_pb2 as pb
from server.errors import ServerError
from server.types import Job

from ..conftest import SERVED
from ..running import UNCUT, RunningServer, running_server

SPLIT = load_digits_split()


def raw(images: np.ndarray) -> pb.Images:
    return pb.Images(shape=images.shape, raw=images.astype("<f4").tobytes())


def sample(**fields) -> pb.SampleRequest:
    return pb.SampleRequest(**({"model": "digits-ddpm", "steps": 2, "seed": 1} | fields))


def score(**fields) -> pb.ScoreRequest:
    return pb.ScoreRequest(**({"model": "digits-vdrme", "images": raw(SPLIT.test.images[:2]), "seed": 1} | fields))


def digit_with(value: float) -> np.ndarray:
    image = SPLIT.test.images[:1].copy()
    image[0, 0, 3, 3] = value
    return image


LONG = "x" * 1_000_000
BIG = np.zeros((409_600, 1, 8, 8), dtype=np.float32)  # 100 MB

BAD = {
    "no model": (sample(model=""), "NOT_FOUND", "model"),
    "unknown model": (sample(model="nope"), "NOT_FOUND", "digits-ddpm"),
    "unknown version": (sample(version=99), "NOT_FOUND", "version"),
    "steps 0": (sample(steps=0), "INVALID_ARGUMENT", "steps"),
    "steps -1": (sample(steps=-1), "INVALID_ARGUMENT", "steps"),
    "steps 10^12": (sample(steps=10**12), "INVALID_ARGUMENT", "steps"),
    "vdrme steps 5": (sample(model="digits-vdrme", steps=5), "INVALID_ARGUMENT", "steps"),
    "m 2": (sample(sampler="iddim", m=[2.0]), "INVALID_ARGUMENT", "m"),
    "m NaN": (sample(sampler="iddim", m=[float("nan")]), "INVALID_ARGUMENT", "m"),
    "m too many": (sample(sampler="iddim", m=[0.1] * 5000), "INVALID_ARGUMENT", "m"),
    "eta 3": (sample(eta=3.0), "INVALID_ARGUMENT", "eta"),
    "guidance -1": (sample(guidance=-1.0), "INVALID_ARGUMENT", "guidance"),
    "guidance inf": (sample(guidance=float("inf")), "INVALID_ARGUMENT", "guidance"),
    "guidance without labels": (sample(model="digits-vdrme", steps=4, guidance=1.0), "FAILED_PRECONDITION", "guidance"),
    "unknown sampler": (sample(sampler="magic"), "INVALID_ARGUMENT", "sampler"),
    "another model's sampler": (sample(sampler="vdrme"), "FAILED_PRECONDITION", "sampler"),
    "an option that the sampler lacks": (sample(sampler="ddim", m=[0.5]), "FAILED_PRECONDITION", "m"),
    "label 11": (sample(labels=[11]), "NOT_FOUND", "labels"),
    "label -1": (sample(labels=[-1]), "NOT_FOUND", "labels"),
    "label 10, the null label's index": (sample(labels=[10]), "NOT_FOUND", "labels"),
    "two labels for three samples": (sample(labels=[1, 2], count=3), "INVALID_ARGUMENT", "labels"),
    "10^9 samples": (sample(count=10**9), "INVALID_ARGUMENT", "count"),
    "0 samples": (sample(count=0), "INVALID_ARGUMENT", "count"),
    "encoding 7": (sample(encoding=7), "INVALID_ARGUMENT", "encoding"),
    "priority 11": (sample(priority=11), "INVALID_ARGUMENT", "priority"),
    "temperature -1": (sample(temperature=-1.0), "INVALID_ARGUMENT", "temperature"),
    "spacing": (sample(spacing="cubic"), "INVALID_ARGUMENT", "spacing"),
    "a row of 100,000 weights": (
        sample(sampler="custom", steps=1, weights=[pb.Weights(values=np.ones(100_000))]),
        "INVALID_ARGUMENT",
        "weights: row 0 must hold 1 values",
    ),
    "a long row of weights is refused before the sampler is looked at": (
        sample(sampler="ddim", weights=[pb.Weights(values=np.ones(100_000))]),
        "INVALID_ARGUMENT",
        "weights: row 0 must hold 1 values",
    ),
    "10,000 rows of weights": (
        sample(sampler="custom", weights=[pb.Weights()] * 10_000),
        "INVALID_ARGUMENT",
        "weights: must hold at most 1000 entries",
    ),
    "a row of weights too short": (
        sample(sampler="custom", steps=2, weights=[pb.Weights(values=[1]), pb.Weights(values=[1])]),
        "INVALID_ARGUMENT",
        "weights: row 1 must hold 2 values",
    ),
    "a model of 1 MB": (sample(model=LONG), "INVALID_ARGUMENT", "model: must hold at most 128 characters, got 1000000"),
    "a model of 1 MB to score with": (score(model=LONG), "INVALID_ARGUMENT", "model: must hold at most 128"),
    "a sampler of 1 MB": (sample(sampler=LONG), "INVALID_ARGUMENT", "sampler: must hold at most 128 characters"),
    "a form of 1 MB": (sample(form=LONG), "INVALID_ARGUMENT", "form: must hold at most 128 characters"),
    "a spacing of 1 MB": (sample(spacing=LONG), "INVALID_ARGUMENT", "spacing: must hold at most 128 characters"),
    "a scale of 1 MB": (score(scales=[LONG]), "INVALID_ARGUMENT", "scales: must hold at most 128 characters"),
    "10^6 scales": (score(scales=[""] * 10**6), "INVALID_ARGUMENT", "scales: must hold at most 1000 entries"),
    "score 10^6 dimensions": (
        score(images=pb.Images(shape=[1] * 10**6)),
        "INVALID_ARGUMENT",
        "images.shape: must be (count, 1, 8, 8), got 1000000 sizes",
    ),
    "custom without weights": (sample(sampler="custom"), "INVALID_ARGUMENT", "weights"),
    "score without energy": (score(model="digits-ddpm"), "FAILED_PRECONDITION", "energy"),
    "score wrong shape": (score(images=raw(np.zeros((1, 1, 9, 9)))), "INVALID_ARGUMENT", "images.shape"),
    "score three dimensions": (
        score(images=pb.Images(shape=[1, 8, 8], raw=bytes(256))),
        "INVALID_ARGUMENT",
        "images.shape",
    ),
    "score too few bytes": (
        score(images=pb.Images(shape=[2, 1, 8, 8], raw=bytes(256))),
        "INVALID_ARGUMENT",
        "images.raw",
    ),
    "score no images": (score(images=pb.Images()), "INVALID_ARGUMENT", "images.shape"),
    "score huge shape": (score(images=pb.Images(shape=[2**40, 1, 8, 8])), "INVALID_ARGUMENT", "images.shape"),
    "score NaN": (score(images=raw(digit_with(float("nan")))), "INVALID_ARGUMENT", "images.raw"),
    "score infinity": (score(images=raw(digit_with(float("inf")))), "INVALID_ARGUMENT", "images.raw"),
    "score out of range": (score(images=raw(digit_with(16.0))), "INVALID_ARGUMENT", "images.raw"),
    "score 100 MB": (score(images=raw(BIG)), "INVALID_ARGUMENT", "images.shape"),
    "score broken PNG": (
        score(images=pb.Images(encoding=pb.PNG, png=[b"\x89PNG no"])),
        "INVALID_ARGUMENT",
        "images.png[0]",
    ),
    "score unknown scale": (score(scales=["t7"]), "NOT_FOUND", "scales"),
    "false alarm rate below what 400 energies resolve": (score(false_alarm_rate=1e-4), "INVALID_ARGUMENT", "at least"),
    "score a scale twice": (score(scales=["t0", "t0"]), "INVALID_ARGUMENT", "scales"),
    "false alarm rate 0": (score(false_alarm_rate=0.0), "INVALID_ARGUMENT", "false_alarm_rate"),
    "false alarm rate 1.5": (score(false_alarm_rate=1.5), "INVALID_ARGUMENT", "false_alarm_rate"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_get_the_tables_code_and_name_the_field(server: RunningServer, case):
    """Each bad request gets its status code and a message that names the field; a good request after it is served."""
    request, code, text = BAD[case]
    call = server.sample if isinstance(request, pb.SampleRequest) else server.score
    with pytest.raises(grpc.RpcError) as caught:
        call(request)
    assert caught.value.code().name == code, caught.value.details()
    assert text in caught.value.details()
    if code == "INVALID_ARGUMENT":
        details = list(rpc_status.from_call(caught.value).details)
        violation = error_details_pb2.BadRequest()
        assert details[0].Unpack(violation)
        assert violation.field_violations[0].field.split("[")[0].split(".")[0] in caught.value.details()
    assert len(server.sample(sample()).images.raw) == 4 * 64


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=300), method=st.sampled_from(["Sampler/Sample", "Scorer/Score", "Models/DescribeModel"]))
def test_garbage_bytes_never_hurt(server: RunningServer, data, method):
    """Random bytes in place of a message get a status of the table, never INTERNAL or a dead server."""
    service, name = method.split("/")
    try:
        server.call(service, name, data, pb.SampleResponse, timeout=20)
    except grpc.RpcError as error:
        assert error.code().name in ("INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"), error.details()


def test_an_unparsable_message_is_an_invalid_argument(server: RunningServer):
    """Bytes that are no protobuf message are INVALID_ARGUMENT, not INTERNAL."""
    with pytest.raises(grpc.RpcError) as caught:
        server.sample(b"\xff\xff\xff\xff")
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "SampleRequest" in caught.value.details()


def test_a_response_tells_what_it_cost(server: RunningServer):
    """NFE, steps, sampler and timing come back; guidance doubles the NFE."""
    plain, guided = (server.sample(sample(sampler="ddim", steps=6, guidance=w, labels=[2])) for w in (0.0, 2.0))
    assert (plain.nfe, guided.nfe, plain.steps, plain.sampler, plain.gradient_passes) == (6, 12, 6, "ddim", 0)
    timing = plain.timing
    assert timing.steps == 6
    assert timing.queue_seconds >= 0
    assert 0 < timing.compute_seconds <= timing.total_seconds
    assert 0 < timing.encode_seconds <= timing.total_seconds - timing.queue_seconds
    langevin = server.sample(sample(model="digits-vdrme", sampler="langevin", steps=5))
    assert (langevin.gradient_passes, langevin.nfe) == (5, 5)


def test_png_output_is_the_raw_output_in_eight_bits(server: RunningServer):
    """PNG pixels are the raw values clipped and rounded."""
    plain = server.sample(sample(count=3))
    pictures = server.sample(sample(count=3, encoding=pb.PNG)).images.png
    values = np.frombuffer(plain.images.raw, "<f4").reshape(3, 8, 8)
    for value, data in zip(values, pictures, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(data)))
        assert np.abs(pixels - (np.clip(value, -1, 1) + 1) * 127.5).max() <= 0.5001


def test_png_and_raw_images_score_alike(server: RunningServer):
    """An image whose values have an exact 8-bit form scores the same as PNG and raw."""
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    values = (pixels.astype(np.float64) / 127.5 - 1).astype(np.float32).reshape(1, 1, 8, 8)
    by_raw = server.score(score(images=raw(values))).scores[0].energy[0]
    by_png = server.score(score(images=pb.Images(encoding=pb.PNG, png=[buffer.getvalue()]))).scores[0].energy[0]
    assert by_png == pytest.approx(by_raw, rel=1e-4, abs=1e-4)


def saved(mode: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (8, 8)).save(buffer, "PNG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("picture", "told"),
    [
        (saved("I;16"), "I;16"),
        (saved("LA"), "LA"),
        (saved("RGBA"), "RGBA"),
        (saved("P", transparency=0), "P with it"),
        (saved("L", transparency=0), "L with it"),
    ],
    ids=["16-bit grey", "grey with alpha", "RGB with alpha", "transparent palette", "transparent grey"],
)
def test_a_png_that_a_conversion_would_change_is_refused(server: RunningServer, picture, told):
    """16 bits saturate and alpha is dropped on the way to 8 grey bits, so such files are refused by their mode."""
    with pytest.raises(grpc.RpcError) as caught:
        server.score(score(images=pb.Images(encoding=pb.PNG, png=[picture])))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith("images.png[0]: must be a PNG")
    assert caught.value.details().endswith(f" {told}")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_a_png_of_eight_bits_is_taken_in_any_mode(server: RunningServer, mode):
    """Black is black in bilevel, grey, palette and colour files: the same energy."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).convert(mode).save(buffer, "PNG")
    energy = server.score(score(images=pb.Images(encoding=pb.PNG, png=[buffer.getvalue()]))).scores[0].energy[0]
    black = server.score(score(images=raw(np.full((1, 1, 8, 8), -1.0)))).scores[0].energy[0]
    assert energy == pytest.approx(black, rel=1e-4, abs=1e-4)


def test_a_png_bomb_is_refused_by_its_header(server: RunningServer):
    """A small file that would unpack to a gigapixel is refused without unpacking it."""
    buffer = io.BytesIO()
    Image.new("L", (20_000, 20_000)).save(buffer, "PNG")
    with pytest.raises(grpc.RpcError, match="8x8"):
        server.score(score(images=pb.Images(encoding=pb.PNG, png=[buffer.getvalue()])))


def test_scores_carry_what_calibration_gives(server: RunningServer):
    """Percentile, p-value and decision agree with each other and with the false-alarm rate."""
    response = server.score(score(images=raw(SPLIT.test.images), false_alarm_rate=0.1))
    scores = response.scores[0]
    energy, p, out = (np.array(values) for values in (scores.energy, scores.p_value, scores.out_of_distribution))
    assert (out == (p <= 0.1)).all()
    assert (np.argsort(energy, kind="stable") == np.lexsort((np.arange(len(p)), energy))).all()
    assert (np.diff(p[np.argsort(energy)]) <= 1e-12).all()
    # 397 held-out digits at a rate of 0.1, with 400 calibration images: 5 standard errors of both.
    assert abs(out.mean() - 0.1) < 5 * np.sqrt(0.09 / 397 + 0.09 / 400)
    noise = np.random.default_rng(0).uniform(-1, 1, (100, 1, 8, 8))
    assert np.mean(server.score(score(images=raw(noise), false_alarm_rate=0.1)).scores[0].out_of_distribution) > 0.9


def test_a_stream_shows_every_step_and_then_the_result(server: RunningServer):
    """Previews come in order, the last one is the sample itself, and the result equals the unary call's."""
    request = sample(steps=6, count=2)
    events = list(server.stream(request))
    previews = [event.preview for event in events if event.HasField("preview")]
    assert [(preview.step, preview.steps) for preview in previews] == [(i + 1, 6) for i in range(6)]
    assert events[-1].HasField("result")
    result = np.frombuffer(events[-1].result.images.raw, "<f4").reshape(2, 64)
    assert np.abs(result.ravel() - np.frombuffer(server.sample(request).images.raw, "<f4")).max() <= 1e-5
    assert np.abs(np.frombuffer(previews[-1].image.raw, "<f4") - result[0]).max() <= 1e-5


def test_models_are_listed_and_described(server: RunningServer):
    """List and describe tell samplers, accepted steps, scales and the manifest with its parity report."""
    listed = server.call("Models", "ListModels", pb.ListModelsRequest(), pb.ListModelsResponse).models
    assert {model.name for model in listed} == set(SERVED)
    vdrme = server.call(
        "Models", "DescribeModel", pb.DescribeModelRequest(model="digits-vdrme"), pb.DescribeModelResponse
    )
    assert list(vdrme.accepted_steps) == [4, 6, 8]
    assert vdrme.calibrated
    assert vdrme.summary.scores
    ddpm = server.call(
        "Models", "DescribeModel", pb.DescribeModelRequest(model="digits-ddpm"), pb.DescribeModelResponse
    )
    assert ddpm.guidance
    assert list(ddpm.image_shape) == [1, 8, 8]
    for graph in json.loads(ddpm.manifest_json)["graphs"].values():
        assert graph["parity"]
        assert all(check["error"] <= graph["bound"] for check in graph["parity"])


def test_health_and_reflection(server: RunningServer):
    """The standard health service says SERVING, and reflection lists the services."""
    health = health_pb2_grpc.HealthStub(server.channel)
    for service in ("", "fewstep.v1.Sampler", "fewstep.v1.Scorer", "fewstep.v1.Models"):
        status = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status
        assert status == health_pb2.HealthCheckResponse.SERVING
    stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=10)
    names = {service.name for service in answer.list_services_response.service}
    assert {"fewstep.v1.Sampler", "fewstep.v1.Scorer", "fewstep.v1.Models", "grpc.health.v1.Health"} <= names


def test_metrics_count_what_happened(server: RunningServer):
    """The metrics page counts calls, steps and network evaluations."""
    url = f"http://127.0.0.1:{server.app.metrics_port}/metrics"

    def value(name: str) -> float:
        with urlopen(url, timeout=10) as page:
            lines = [line for line in page.read().decode().splitlines() if line.startswith(name)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    evaluations = 'fewstep_nfe_total{model="digits-ddpm"}'
    calls = 'fewstep_request_seconds_count{code="OK",model="digits-ddpm",rpc="Sample"}'
    before = value(evaluations), value(calls)
    server.sample(sample(steps=5, count=3))
    deadline = time.monotonic() + 5
    while value(calls) < before[1] + 1 and time.monotonic() < deadline:
        threading.Event().wait(0.02)
    assert (value(evaluations) - before[0], value(calls) - before[1]) == (15, 1)
    assert value("fewstep_build_info") == 1


def test_a_caller_that_goes_away_frees_its_rows(server: RunningServer):
    """Cancelled calls leave no row and no slot behind, and later calls are served."""
    futures = [server.later(sample(steps=100, spacing="linear", count=64, seed=i)) for i in range(4)]
    batcher = server.engine.batcher
    deadline = time.monotonic() + 10
    while batcher.jobs < 4 and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert batcher.jobs == 4
    for future in futures:
        future.cancel()
    while (batcher.jobs or batcher.rows_in_flight) and time.monotonic() < deadline:
        server.sample(sample())
    assert (batcher.jobs, batcher.rows_in_flight, batcher.admission.waiting_rows) == (0, 0, 0)


def test_a_deadline_that_passes_ends_the_call(server: RunningServer):
    """A request that cannot be done in its time ends with DEADLINE_EXCEEDED, and its rows leave."""
    with pytest.raises(grpc.RpcError) as caught:
        server.later(sample(steps=100, spacing="linear", count=256), timeout=0.05).result()
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    batcher = server.engine.batcher
    deadline = time.monotonic() + 10
    while (batcher.jobs or batcher.rows_in_flight) and time.monotonic() < deadline:
        server.sample(sample())
    assert batcher.rows_in_flight == 0


def test_one_step_is_not_held_up_by_eight(repository: Path, monkeypatch: pytest.MonkeyPatch):
    """A 1-step request sent while 64 8-step rows run is done after the step that runs and its own, not after eight."""
    with running_server(repository, limits=UNCUT) as server:
        engine = server.engine
        batcher, submit = engine.batcher, engine.submit
        waited: list[int] = []

        def submit_counting(job: Job) -> None:
            done = job.on_done
            submit(job)
            before, beside = batcher.counters.batches, batcher.rows_in_flight - len(job.rows)

            def count(ended: Job, error: ServerError | None) -> None:
                if len(ended.rows) == 1 and beside == 64:
                    waited.append(batcher.counters.batches - before)
                done(ended, error)

            job.on_done = count

        monkeypatch.setattr(engine, "submit", submit_counting)
        deadline = time.monotonic() + 60
        while len(waited) < 5:
            assert time.monotonic() < deadline
            crowd = server.later(sample(steps=8, count=64))
            while batcher.rows_in_flight < 64 and not crowd.done():
                threading.Event().wait(0.0005)
            server.sample(sample(steps=1))
            crowd.result()
    assert max(waited) <= 2, waited
