"""Graphs with more weights than an ONNX file holds: these are in a file beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.numpy import load_file

from export.runtime import Array, EngineError
from export.runtime.onnxruntime import OnnxRuntime, OnnxSession
from models.bundle import Bundle, BundleError, load_bundle

NETWORKS = ("denoiser", "energy-gradient")


def inputs_of(bundle: Bundle, network: str, rows: int = 3) -> dict[str, Array]:
    generator = np.random.default_rng(0)
    return {
        tensor.name: generator.integers(10, size=rows)
        if tensor.dtype == "int64"
        else generator.standard_normal((rows, *tensor.shape), dtype=np.float32)
        for tensor in bundle.card.networks[network].inputs
    }


@pytest.mark.parametrize("network", NETWORKS)
def test_weights_are_beside_the_graph_and_answers_are_the_same(bundle: Bundle, large_bundle: Bundle, network: str):
    """The graph holds no large tensor, the file beside it all of them, and every output has the same bytes."""
    held = onnx.load(large_bundle.graph_path(network), load_external_data=False).graph.initializer
    outside = {tensor.name for tensor in held if tensor.data_location == onnx.TensorProto.EXTERNAL}
    path = large_bundle.graph_weights_path(network)
    assert path is not None
    assert outside == load_file(path).keys() != set()
    assert max(len(tensor.raw_data) for tensor in held) <= 256
    inputs = inputs_of(bundle, network)
    inline, beside = (OnnxRuntime(1).load(found, network).run(inputs) for found in (bundle, large_bundle))
    assert all(np.array_equal(a, b) for a, b in zip(inline, beside, strict=True))
    assert bundle.graph_weights_path(network) is None


@pytest.mark.parametrize("network", NETWORKS)
def test_other_tools_find_the_weights_by_the_files_name(large_bundle: Bundle, network: str):
    """The graph is ONNX with external data as the standard has it: who trusts its paths can read it as it is."""
    path = large_bundle.graph_path(network)
    onnx.checker.check_model(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = inputs_of(large_bundle, network)
    ours = OnnxRuntime(1).load(large_bundle, network).run(inputs)
    names = [tensor.name for tensor in large_bundle.card.networks[network].outputs]
    for wanted, found in zip(ours, session.run(names, inputs), strict=True):
        assert np.abs(wanted - found).max() <= 1e-6 * max(1.0, np.abs(wanted).max())


def test_parity_and_sizes_are_of_the_large_form(large_bundle: Bundle):
    """It was measured like any other, and its size counts both files."""
    for name, graph in large_bundle.manifest.graphs.items():
        assert 0 <= graph.worst <= graph.bound
        files = (large_bundle.graph_path(name), large_bundle.graph_weights_path(name))
        assert large_bundle.manifest.exported["graphs"][name]["bytes"] == sum(p.stat().st_size for p in files if p)


@pytest.fixture
def copied(large_bundle: Bundle, tmp_path: Path) -> Bundle:
    shutil.copytree(large_bundle.directory, tmp_path / "1")
    return Bundle(tmp_path / "1", large_bundle.manifest)


def test_damaged_or_missing_weights_are_refused_by_name(copied: Bundle):
    """One changed byte, or no file: the bundle does not load, and the message names the file."""
    path = copied.graph_weights_path("denoiser")
    assert path is not None
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"denoiser\.onnx\.safetensors: SHA-256"):
        load_bundle(copied.directory)
    path.unlink()
    with pytest.raises(BundleError, match=r"denoiser\.onnx\.safetensors: no such file"):
        load_bundle(copied.directory)
    with pytest.raises(EngineError, match=r"denoiser\.onnx\.safetensors: No such file"):
        OnnxRuntime(1).load(copied, "denoiser")


def test_only_the_given_file_is_read(copied: Bundle):
    """The name in the graph is no path: without the contents, or with another file's, the model is refused."""
    path = copied.graph_weights_path("denoiser")
    assert path is not None
    graph, spec = copied.graph_path("denoiser"), copied.card.networks["denoiser"]
    for beside in ({}, {"other.safetensors": path.read_bytes()}):
        with pytest.raises(EngineError, match="refused the model"):
            OnnxSession("denoiser", spec, graph.read_bytes(), 1, graph, beside)


@pytest.mark.parametrize("kept", [0, 8, -1])
def test_a_file_that_is_too_short_is_refused(copied: Bundle, kept: int):
    """Where a graph points beyond the file's end nothing is read."""
    path = copied.graph_weights_path("denoiser")
    assert path is not None
    graph, spec = copied.graph_path("denoiser"), copied.card.networks["denoiser"]
    with pytest.raises(EngineError, match="refused the model"):
        OnnxSession("denoiser", spec, graph.read_bytes(), 1, graph, {path.name: path.read_bytes()[:kept]})
