"""Models come and go through Triton's clients, unmodified."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from ..running import running_server

NAME = "digits-ddpm"


def test_models_are_loaded_and_unloaded(own_repository: Path):
    """What is unloaded is gone for every API; what is loaded is what stands on disk, and answers."""
    with running_server(own_repository) as server, triton.InferenceServerClient(server.address) as client:
        client.unload_model(NAME, unload_dependents=True)
        assert not client.is_model_ready(NAME)
        assert list(client.get_model_repository_index().models) == []
        with pytest.raises(InferenceServerException, match="there are: none"):
            client.unload_model(NAME)

        client.load_model(NAME)
        assert client.is_model_ready(NAME)
        seed = triton.InferInput("SEED", [1, 1], "UINT64")
        seed.set_data_from_numpy(np.ones((1, 1), np.uint64))
        assert client.infer(NAME, [seed], parameters={"steps": 1}).as_numpy("IMAGES").shape == (1, 1, 8, 8)

        shutil.rmtree(own_repository / NAME)
        client.load_model(NAME)  # up to date with the disk, where it is no more
        assert not client.is_model_ready(NAME)
        with pytest.raises(InferenceServerException, match="loaded or on disk"):
            client.load_model(NAME)


def test_a_configuration_in_place_of_the_one_on_disk_is_refused(own_repository: Path):
    with running_server(own_repository) as server, triton.InferenceServerClient(server.address) as client:
        for wrong in ({"config": "{}"}, {"files": {"file:1/model.onnx": b"onnx"}, "config": "{}"}):
            with pytest.raises(InferenceServerException, match="as they are on disk") as caught:
                client.load_model(NAME, **wrong)
            assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert client.is_model_ready(NAME)
