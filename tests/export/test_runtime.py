"""The engines behind one protocol: they agree, refuse what they must, and import no more than they need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.parity import draw_inputs
from export.runtime import EngineError
from export.runtime.device import open_device_runtime
from export.runtime.onnxruntime import OnnxRuntime, OnnxSession, read_graph
from models.bundle import Bundle, load_bundle
from models.card import NetworkSpec

from . import tiny

ROOT = Path(__file__).parents[2]
BOUND = 1e-5


def arrays(bundle: Bundle, spec: NetworkSpec, rows: int, seed: int) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in draw_inputs(bundle.card, spec, rows, seed).items()}


def assert_agree(bundle: Bundle, rows: int) -> None:
    """ONNX Runtime's outputs on NumPy arrays are torch's on tensors."""
    for network, spec in bundle.card.networks.items():
        inputs = arrays(bundle, spec, rows, seed=5)
        session = OnnxRuntime(1).load(bundle, network)
        assert session.name == network
        outputs = session.run(inputs)
        modules = open_device_runtime("torch", torch.device("cpu")).load(bundle, network)
        expected = modules.run({name: torch.from_numpy(array) for name, array in inputs.items()})
        for tensor, left, right in zip(spec.outputs, outputs, expected, strict=True):
            assert left.shape == tuple(right.shape) == (rows, *tensor.shape)
            assert left.dtype == np.float32
            assert np.abs(left - right.numpy()).max() <= BOUND * max(1.0, float(right.abs().max()))


@pytest.mark.parametrize("rows", [1, 5])
def test_engines_agree(bundle: Bundle, rows: int):
    """Every network gives the same numbers in each engine."""
    assert_agree(bundle, rows)


def test_engines_agree_on_the_shipped_denoiser(repository: Path):
    """The shipped U-Net, exported, gives what torch gives."""
    newest = max((repository / "digits-ddpm").iterdir(), key=lambda path: int(path.name))
    assert_agree(load_bundle(newest), rows=3)


def test_a_session_keeps_no_copy_of_its_graph(bundle: Bundle):
    """Weights are in a graph's bytes, and in the session once more: a server would hold both."""
    graph, weights = read_graph(bundle, "denoiser")
    holders = sys.getrefcount(graph)
    origin, spec = bundle.graph_path("denoiser"), bundle.card.networks["denoiser"]
    session = OnnxSession("denoiser", spec, graph, 1, origin, weights)
    assert sys.getrefcount(graph) == holders
    assert session.run(arrays(bundle, spec, 2, seed=1))


def test_outputs_belong_to_the_caller(bundle: Bundle):
    """A later run does not write into what an earlier one returned, nor any run into its inputs."""
    session = OnnxRuntime(1).load(bundle, "denoiser")
    spec = bundle.card.networks["denoiser"]
    first, second = (arrays(bundle, spec, 4, seed) for seed in (0, 1))
    kept = {name: array.copy() for name, array in first.items()}
    (output,) = session.run(first)
    before = output.copy()
    session.run(second)
    assert np.array_equal(output, before)
    assert all(np.array_equal(first[name], kept[name]) for name in kept)
    output += 1.0
    assert np.array_equal(session.run(first)[0], before)


def test_no_threads_are_refused():
    """At least the calling one is needed."""
    with pytest.raises(EngineError, match="threads"):
        OnnxRuntime(0)


def test_an_unknown_network_is_refused(bundle: Bundle):
    """The message lists the networks that there are."""
    with pytest.raises(EngineError, match=r"'classifier'.*'denoiser'"):
        OnnxRuntime(1).load(bundle, "classifier")


def test_a_file_that_is_no_model_is_named(bundle: Bundle, tmp_path: Path):
    """A graph that cannot be read, or is no ONNX, is an error that names the file."""
    elsewhere = Bundle(tmp_path, bundle.manifest)
    with pytest.raises(EngineError, match=r"denoiser\.onnx: No such file"):
        OnnxRuntime(1).load(elsewhere, "denoiser")
    (tmp_path / "denoiser.onnx").write_bytes(b"garbage")
    with pytest.raises(EngineError, match=r"denoiser\.onnx: ONNX Runtime refused"):
        OnnxRuntime(1).load(elsewhere, "denoiser")


def test_a_graph_with_another_interface_is_refused(bundle: Bundle):
    """A graph whose inputs differ from the card's would fail at the first request; it fails at load."""
    data = bundle.graph_path("denoiser").read_bytes()
    with pytest.raises(EngineError, match="inputs of the model"):
        OnnxSession("denoiser", tiny.forward_spec("denoiser"), data, 1, Path("denoiser.onnx"))


@pytest.mark.parametrize("place", ["absolute", "beside", "above"])
@pytest.mark.parametrize("attribute", [False, True])
def test_external_data_is_refused(tmp_path: Path, place: str, attribute: bool, monkeypatch: pytest.MonkeyPatch):
    """A model cannot make the server read another file, wherever that lies."""
    bundle_directory = tmp_path / "bundle"
    bundle_directory.mkdir()
    monkeypatch.chdir(bundle_directory)
    secret = (tmp_path if place == "above" else bundle_directory) / "secret"
    secret.write_bytes(bytes(256))
    location = {"absolute": str(secret), "beside": "secret", "above": "../secret"}[place]
    tensor = onnx.TensorProto(name="secret", data_type=1, dims=[1, 8, 8], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="length", value="256")
    nodes = [onnx.helper.make_node("Add", ["sample", "secret"], ["output"])]
    if attribute:
        nodes.insert(0, onnx.helper.make_node("Constant", [], ["secret"], value=tensor))
    values = [onnx.helper.make_tensor_value_info(name, 1, ["rows", 1, 8, 8]) for name in ("sample", "output")]
    graph = onnx.helper.make_graph(nodes, "graph", values[:1], values[1:], [] if attribute else [tensor])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    path = bundle_directory / "scale.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match="External data"):
        OnnxSession("scale", tiny.forward_spec("scale"), path.read_bytes(), 1, path)


def test_serving_imports_neither_torch_nor_an_exporter(repository: Path):
    """With the default engine a network runs in a process that has loaded neither torch, diffusers nor an exporter."""
    code = (
        "import sys, numpy as np; from pathlib import Path; from export.runtime.onnxruntime import OnnxRuntime; "
        "from models.bundle import load_bundle; "
        f"bundle = load_bundle(Path({str(repository / 'digits-ddpm' / '1')!r})); "
        "session = OnnxRuntime(1).load(bundle, 'denoiser'); "
        "sample, time = np.zeros((1, 1, 8, 8), dtype=np.float32), np.zeros(1, dtype=np.float32); "
        "(output,) = session.run({'sample': sample, 'time': time, 'label': np.zeros(1, dtype=np.int64)}); "
        "assert output.shape == (1, 1, 8, 8); "
        "found = {'torch', 'onnx', 'onnxscript', 'diffusers', 'export.trace', 'export.to_onnx'} & set(sys.modules); "
        "sys.exit(str(found) if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
