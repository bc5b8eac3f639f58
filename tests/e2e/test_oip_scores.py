"""Scores through the Open Inference Protocol."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from models.data import load_digits_split
from protos import fewstep_pb2 as pb
from protos import inference_pb2 as oip

from ..running import RunningServer, running_server
from .oip_client import BOTH, SCORER, model_infer, native, seeds, tensor

SPLIT = load_digits_split()


DIGITS = SPLIT.test.images[:5].astype(np.float32)


def images_input(images: np.ndarray) -> triton.InferInput:
    return tensor("IMAGES", images, "float32")


def native_scores(server: RunningServer, images: np.ndarray, **fields: Any) -> pb.ScoreResponse:
    given = pb.Images(shape=images.shape, raw=images.astype("<f4").tobytes())
    return server.score(pb.ScoreRequest(**({"model": BOTH, "images": given, "seed": 5} | fields)))


def test_scores_are_the_native_ones(server: RunningServer, client: triton.InferenceServerClient):
    """Energies of all scales with their percentiles, p-values and decisions, for digits and for noise."""
    noise = np.random.default_rng(0).uniform(-1, 1, DIGITS.shape)
    images = np.concatenate([DIGITS, noise]).astype(np.float32)
    parameters = {"scales": "all", "seed": 5, "false_alarm_rate": 0.1}
    result = client.infer(SCORER, [images_input(images)], parameters=parameters, request_id="s")
    expected = native_scores(server, images, scales=["all"], false_alarm_rate=0.1).scores
    for name, field, dtype in (
        ("ENERGY", "energy", np.float64),
        ("P_VALUE", "p_value", np.float64),
        ("PERCENTILE", "percentile", np.float64),
        ("OUT_OF_DISTRIBUTION", "out_of_distribution", np.bool_),
    ):
        values = result.as_numpy(name)
        assert (values.shape, values.dtype) == ((10, len(expected)), dtype)
        for column, score in zip(values.T, expected, strict=True):
            assert np.array_equal(column, getattr(score, field)), name
    response = result.get_response()
    assert response.id == "s"
    assert response.parameters["scales"].string_param == ",".join(score.scale for score in expected)
    assert response.parameters["seed"].int64_param == 5


def test_a_scorer_and_a_sampler_are_two_names(client: triton.InferenceServerClient):
    """A model that does both is listed as NAME and NAME.score, each with its own tensors."""
    index = dict.fromkeys(entry.name for entry in client.get_model_repository_index().models)
    assert [name for name in index if name.startswith(BOTH)] == [BOTH, SCORER]
    scorer = client.get_model_metadata(SCORER)
    assert [given.name for given in scorer.inputs] == ["IMAGES"]
    assert [given.name for given in scorer.outputs] == ["ENERGY", "P_VALUE", "PERCENTILE", "OUT_OF_DISTRIBUTION"]
    assert [given.name for given in client.get_model_metadata(BOTH).outputs] == ["IMAGES"]
    drawn = client.infer(BOTH, [seeds(3, 4)], parameters={"steps": 4}).as_numpy("IMAGES")
    energies = client.infer(SCORER, [images_input(np.clip(drawn, -1, 1))]).as_numpy("ENERGY")
    assert energies.shape == (2, 1)


def test_samples_of_every_family_are_the_native_ones(server: RunningServer, client: triton.InferenceServerClient):
    """VDRME's generator and Langevin dynamics on its energy, by seed."""
    for parameters in ({"sampler": "vdrme", "steps": 4}, {"sampler": "langevin", "steps": 6, "temperature": 1.0}):
        images = client.infer(BOTH, [seeds(8, 9)], parameters=parameters).as_numpy("IMAGES")
        for row, seed in zip(images, (8, 9), strict=True):
            assert np.abs(row - native(server, seed, model=BOTH, **parameters)).max() <= 1e-5


def test_only_the_outputs_asked_for_come(client: triton.InferenceServerClient):
    """Requested outputs come in the request's order, and no others."""
    outputs = [triton.InferRequestedOutput("P_VALUE"), triton.InferRequestedOutput("ENERGY")]
    result = client.infer(SCORER, [images_input(DIGITS)], outputs=outputs)
    assert [output.name for output in result.get_response().outputs] == ["P_VALUE", "ENERGY"]
    assert result.as_numpy("OUT_OF_DISTRIBUTION") is None


def test_typed_images_score_as_raw_ones_do(server: RunningServer, client: triton.InferenceServerClient):
    """FP32 elements in the message's typed field give the same energies."""
    request = oip.ModelInferRequest(model_name=SCORER)
    request.inputs.add(name="IMAGES", datatype="FP32", shape=DIGITS.shape).contents.fp32_contents.extend(DIGITS.ravel())
    request.outputs.add(name="ENERGY")
    energies = np.frombuffer(model_infer(server, request).raw_output_contents[0]).reshape(5, 1)
    assert np.array_equal(energies, client.infer(SCORER, [images_input(DIGITS)]).as_numpy("ENERGY"))


BAD_SCORES = {
    "shape": (
        {"inputs": [images_input(np.zeros((1, 1, 9, 9)))]},
        "INVALID_ARGUMENT",
        "IMAGES: shape must be [-1, 1, 8, 8], got [1, 1, 9, 9]",
    ),
    "datatype": (
        {"inputs": [tensor("IMAGES", DIGITS, "float64")]},
        "INVALID_ARGUMENT",
        "IMAGES: data-type must be FP32",
    ),
    "NaN": ({"inputs": [images_input(DIGITS * np.nan)]}, "INVALID_ARGUMENT", "IMAGES: image 0 holds a value"),
    "range": ({"inputs": [images_input(DIGITS * 9)]}, "INVALID_ARGUMENT", "IMAGES: values must be within [-1, 1]"),
    "unknown scale": ({"parameters": {"scales": "t7777"}}, "NOT_FOUND", "scales"),
    "a scale twice": ({"parameters": {"scales": "all,all"}}, "INVALID_ARGUMENT", "scales"),
    "false alarm rate": ({"parameters": {"false_alarm_rate": 1.5}}, "INVALID_ARGUMENT", "false_alarm_rate"),
    "a sampler's parameter": ({"parameters": {"steps": 3}}, "INVALID_ARGUMENT", "'steps'"),
    "unknown output": ({"outputs": [triton.InferRequestedOutput("IMAGES")]}, "INVALID_ARGUMENT", "'IMAGES'"),
}


@pytest.mark.parametrize("case", BAD_SCORES)
def test_bad_scores_get_a_code_and_a_message_that_names_the_tensor(client: triton.InferenceServerClient, case):
    """As for samples."""
    fields, code, message = BAD_SCORES[case]
    with pytest.raises(InferenceServerException) as caught:
        client.infer(**({"model_name": SCORER, "inputs": [images_input(DIGITS)]} | fields))
    assert caught.value.status() == f"StatusCode.{code}", caught.value
    assert message in caught.value.message()


def test_without_calibration_only_energies_come(repository: Path, tmp_path: Path):
    """A scale without calibration has an energy; asked for more, the server says what is missing."""
    newest = max((repository / BOTH).iterdir(), key=lambda version: int(version.name))
    bundle = shutil.copytree(newest, tmp_path / BOTH / newest.name)
    manifest = json.loads((bundle / "manifest.json").read_text())
    scales = manifest["card"]["energy"]["scales"]
    scales[0]["calibration"] = []
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with running_server(tmp_path) as server, triton.InferenceServerClient(server.address) as client:
        outputs = client.infer(SCORER, [images_input(DIGITS)]).get_response().outputs
        assert [output.name for output in outputs] == ["ENERGY"]
        metadata = client.get_model_metadata(SCORER).outputs
        others = any(scale["calibration"] for scale in scales[1:])
        assert ("P_VALUE" in [output.name for output in metadata]) == others
        with pytest.raises(InferenceServerException, match="no calibration for scale"):
            client.infer(SCORER, [images_input(DIGITS)], outputs=[triton.InferRequestedOutput("P_VALUE")])
