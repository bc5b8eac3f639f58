"""The TensorRT engine against a strict fake of TensorRT, and its cache on disk."""

from __future__ import annotations

import importlib
import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from export.parity import draw_inputs
from export.runtime import EngineError, engine_cache, gpu
from export.runtime.device import open_device_runtime
from models.bundle import Bundle, load_bundle

from . import fake_tensorrt

CPU = torch.device("cpu")
HERE = gpu.Gpu("NVIDIA Fake 80GB", "9.0")
OURS = ("export.to_tensorrt", "export.runtime.tensorrt")


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`export.runtime.tensorrt` on the fake, with tensors on the CPU in the place of a GPU."""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt", fake_tensorrt)
        for name in OURS:
            patch.delitem(sys.modules, name, raising=False)
        patch.setattr(gpu, "describe", lambda device: HERE)
        patch.setattr(gpu, "selected", lambda device: nullcontext())
        patch.setattr(gpu, "current_stream", lambda device: 7)
        patch.setattr(gpu, "capturing", lambda device: False)
        patch.setattr(fake_tensorrt.Builder, "built", [])
        patch.setattr(fake_tensorrt.IExecutionContext, "made", 0)
        yield importlib.import_module("export.runtime.tensorrt")
    for name in OURS:
        sys.modules.pop(name, None)


@pytest.fixture(params=["inline", "large"])
def copied(request: pytest.FixtureRequest, bundle: Bundle, large_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A bundle of the test's own, with its weights in the graph or beside it."""
    source = bundle if request.param == "inline" else large_bundle
    shutil.copytree(source.directory, tmp_path / "bundle")
    return load_bundle(tmp_path / "bundle")


def files(bundle: Bundle, ending: str) -> list[Path]:
    return sorted(bundle.directory.glob(f"*.{ending}"))


def assert_as_onnxruntime(session: Any, bundle: Bundle, network: str, rows: int) -> None:
    inputs = draw_inputs(bundle.card, bundle.card.networks[network], rows, seed=rows)
    expected = open_device_runtime("onnxruntime", CPU).load(bundle, network).run(inputs)
    for found, wanted in zip(session.run(inputs), expected, strict=True):
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max().clamp_min(1.0)


def test_engines_give_what_the_graph_gives(tensorrt: ModuleType, copied: Bundle):
    """At the smallest, largest and odd batch sizes, for a forward network and a gradient."""
    runtime = tensorrt.TensorRTRuntime(CPU, largest=6)
    for network in copied.card.networks:
        session = runtime.load(copied, network)
        assert (session.name, session.capturable, session.dtype) == (network, True, torch.float32)
        for rows in (1, 2, 3, 6, 2):
            assert_as_onnxruntime(session, copied, network, rows)


def test_outputs_are_new_tensors(tensorrt: ModuleType, copied: Bundle):
    """A later run does not write into what an earlier one returned."""
    session = tensorrt.TensorRTRuntime(CPU, largest=2).load(copied, "denoiser")
    spec = copied.card.networks["denoiser"]
    (first,) = session.run(draw_inputs(copied.card, spec, 2, seed=0))
    kept = first.clone()
    session.run(draw_inputs(copied.card, spec, 2, seed=1))
    assert torch.equal(first, kept)


def test_profiles_are_the_buckets_and_leave_no_gap(tensorrt: ModuleType, copied: Bundle):
    """One profile a bucket, tuned for its full size, which begins behind the one before; no TF32, no other streams."""
    tensorrt.TensorRTRuntime(CPU, largest=12).load(copied, "denoiser")
    (config,) = fake_tensorrt.Builder.built
    rows = [tuple(shape[0] for shape in profile.shapes["sample"]) for profile in config.profiles]
    assert rows == [(1, 1, 1), (2, 2, 2), (3, 4, 4), (5, 8, 8), (9, 12, 12)]
    assert all(len(profile.shapes["time"][0]) == 1 for profile in config.profiles)
    assert config.flags_set == set()
    assert config.max_aux_streams == 0
    assert config.pools


def test_one_context_for_each_number_of_rows(tensorrt: ModuleType, copied: Bundle):
    """A context keeps its shapes, as a graph that was captured with it must find them; more rows than built for are
    refused."""
    session = tensorrt.TensorRTRuntime(CPU, largest=4).load(copied, "denoiser")
    spec = copied.card.networks["denoiser"]
    for rows in (4, 3, 4, 3, 1):
        session.run(draw_inputs(copied.card, spec, rows, seed=0))
    assert fake_tensorrt.IExecutionContext.made == 3
    with pytest.raises(EngineError, match="got 5 rows, its engine was built for 4"):
        session.run(draw_inputs(copied.card, spec, 5, seed=0))


def test_a_context_that_was_captured_is_not_used_again(
    tensorrt: ModuleType, copied: Bundle, monkeypatch: pytest.MonkeyPatch
):
    """A graph has its own one, which no later run gives other addresses; a capture makes none."""
    session = tensorrt.TensorRTRuntime(CPU, largest=4).load(copied, "denoiser")
    inputs = draw_inputs(copied.card, copied.card.networks["denoiser"], 2, seed=0)
    made = fake_tensorrt.IExecutionContext.made
    session.run(inputs)
    monkeypatch.setattr(gpu, "capturing", lambda device: True)
    session.run(inputs)
    (captured,) = session._captured
    addresses = dict(captured._addresses)
    with pytest.raises(EngineError, match="'denoiser' has to run with 2 rows before each capture, and once in it"):
        session.run(inputs)
    monkeypatch.setattr(gpu, "capturing", lambda device: False)
    for _ in range(2):
        session.run({name: value.clone() for name, value in inputs.items()})
    assert fake_tensorrt.IExecutionContext.made == made + 2
    assert captured._addresses == addresses


def test_the_engine_is_kept_and_found(tensorrt: ModuleType, copied: Bundle, caplog: pytest.LogCaptureFixture):
    """A second start builds nothing; the bundle still loads, and the log says what takes minutes."""
    with caplog.at_level(logging.INFO):
        tensorrt.TensorRTRuntime(CPU, largest=2).load(copied, "denoiser")
    assert "building a TensorRT engine for NVIDIA Fake 80GB" in caplog.text
    assert [path.name for path in files(copied, "engine")] == ["denoiser.nvidia-fake-80gb.engine"]
    assert len(files(copied, "timing")) == 1
    before = {path: path.read_bytes() for path in copied.directory.iterdir()}
    session = tensorrt.TensorRTRuntime(CPU, largest=2).load(load_bundle(copied.directory), "denoiser")
    assert len(fake_tensorrt.Builder.built) == 1
    assert {path: path.read_bytes() for path in copied.directory.iterdir()} == before
    assert_as_onnxruntime(session, copied, "denoiser", 2)


def other_gpu(patch: pytest.MonkeyPatch) -> int:
    patch.setattr(gpu, "describe", lambda device: gpu.Gpu("Another", "8.0"))
    return 2


def other_capability(patch: pytest.MonkeyPatch) -> int:
    patch.setattr(gpu, "describe", lambda device: HERE._replace(capability="9.1"))
    return 2


def other_version(patch: pytest.MonkeyPatch) -> int:
    patch.setattr(fake_tensorrt, "__version__", "11.1.0")
    return 2


def other_batches(patch: pytest.MonkeyPatch) -> int:
    return 3


@pytest.mark.parametrize("change", [other_gpu, other_capability, other_version, other_batches])
def test_another_key_builds_anew(tensorrt: ModuleType, copied: Bundle, monkeypatch: pytest.MonkeyPatch, change):
    """GPU, compute capability, TensorRT and batch sizes each belong to the key."""
    tensorrt.TensorRTRuntime(CPU, largest=2).load(copied, "denoiser")
    largest = change(monkeypatch)
    for _ in range(2):
        tensorrt.TensorRTRuntime(CPU, largest=largest).load(copied, "denoiser")
    assert len(fake_tensorrt.Builder.built) == 2


def test_another_graph_builds_anew(tensorrt: ModuleType, bundle: Bundle, tmp_path: Path):
    """An engine that lies beside another graph is not taken for that graph's."""
    shutil.copytree(bundle.directory, tmp_path / "bundle")
    copied = load_bundle(tmp_path / "bundle")
    runtime = tensorrt.TensorRTRuntime(CPU, largest=2)
    runtime.load(copied, "denoiser")
    (engine,) = files(copied, "engine")
    engine.rename(engine.with_name(engine.name.replace("denoiser", "energy-gradient")))
    assert_as_onnxruntime(runtime.load(copied, "energy-gradient"), copied, "energy-gradient", 2)
    assert len(fake_tensorrt.Builder.built) == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign", "header", "plan"])
def test_a_damaged_engine_is_built_anew(
    tensorrt: ModuleType, copied: Bundle, damage: str, caplog: pytest.LogCaptureFixture
):
    """Not one changed byte reaches TensorRT, and a plan that it does not take is replaced."""
    tensorrt.TensorRTRuntime(CPU, largest=2).load(copied, "denoiser")
    (path,) = files(copied, "engine")
    whole = path.read_bytes()
    header, _, plan = whole.partition(b"\n")
    path.write_bytes(
        {
            "flip": whole[:-1] + bytes([whole[-1] ^ 1]),
            "cut": whole[:-100],
            "empty": b"",
            "foreign": plan,
            "header": header[:-5] + b"\n" + plan,
            "plan": whole,
        }[damage]
    )
    if damage == "plan":
        key = engine_cache.msgspec.json.decode(header)["key"]
        engine_cache.write(path, key, b"made by another build of this version")
    session = tensorrt.TensorRTRuntime(CPU, largest=2).load(copied, "denoiser")
    assert len(fake_tensorrt.Builder.built) == 2
    assert path.read_bytes() == whole
    assert str(path) in caplog.text or damage == "plan"
    assert_as_onnxruntime(session, copied, "denoiser", 1)


def test_a_bundle_that_cannot_be_written_to_is_served_all_the_same(
    tensorrt: ModuleType, copied: Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """The engine is then built at each start, which the log says."""

    def refuse(*arguments: Any, **settings: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(engine_cache.tempfile, "mkstemp", refuse)
    session = tensorrt.TensorRTRuntime(CPU, largest=2).load(copied, "denoiser")
    assert_as_onnxruntime(session, copied, "denoiser", 2)
    assert not files(copied, "engine")
    assert "cannot be written, and will be made again next time: Permission denied" in caplog.text


def test_timings_gather(tensorrt: ModuleType, copied: Bundle):
    """Each build begins with the timings of the ones before, and adds its own."""
    runtime = tensorrt.TensorRTRuntime(CPU, largest=2)
    runtime.load(copied, "denoiser")
    (path,) = files(copied, "timing")
    first = path.read_bytes()
    runtime.load(copied, "energy-gradient")
    assert b"ConvTranspose" not in first
    assert b"ConvTranspose" in path.read_bytes()
    assert b'"Concat"' in first
    assert b'"Concat"' in path.read_bytes()


def test_what_tensorrt_refuses_is_told(tensorrt: ModuleType, copied: Bundle):
    """A graph that is none names the file and the parser's reason; an old TensorRT, its version."""
    copied.graph_path("denoiser").write_bytes(b"garbage")
    with pytest.raises(EngineError, match=r"denoiser.*refuses the graph: model deserialization failed"):
        tensorrt.TensorRTRuntime(CPU, largest=2).load(copied, "denoiser")
    with pytest.raises(EngineError, match=r"no network 'classifier'; there are \['denoiser'"):
        tensorrt.TensorRTRuntime(CPU, largest=2).load(copied, "classifier")


def test_an_old_tensorrt_is_refused(tensorrt: ModuleType, copied: Bundle, monkeypatch: pytest.MonkeyPatch):
    """Before 11, networks are weakly typed and would be computed in other types than the graph's."""
    monkeypatch.setattr(fake_tensorrt, "__version__", "10.13.0")
    with pytest.raises(EngineError, match=r"TensorRT 10\.13\.0 is installed, 11 or newer"):
        tensorrt.TensorRTRuntime(CPU, largest=2).load(copied, "denoiser")


def test_damaged_weights_beside_the_graph_are_refused(tensorrt: ModuleType, large_bundle: Bundle, tmp_path: Path):
    """Weights come from the file that the manifest names, and a file of another size fits no initializer."""
    shutil.copytree(large_bundle.directory, tmp_path / "bundle")
    copied = load_bundle(tmp_path / "bundle")
    beside = copied.graph_weights_path("denoiser")
    assert beside is not None
    shutil.copyfile(copied.directory / "energy-gradient.onnx.safetensors", beside)
    with pytest.raises(EngineError, match=r"initializer .* not found"):
        tensorrt.TensorRTRuntime(CPU, largest=2).load(copied, "denoiser")


def test_tensors_that_do_not_fit_are_refused_before_they_are_read(tensorrt: ModuleType, copied: Bundle):
    """Addresses carry neither type nor shape: half precision, a missing input and odd rows are found before."""
    session = tensorrt.TensorRTRuntime(CPU, largest=4).load(copied, "denoiser")
    inputs = draw_inputs(copied.card, copied.card.networks["denoiser"], 3, seed=0)
    for change, message in (
        ({"sample": inputs["sample"].half()}, r"'sample' is torch.float16 \(3, 1, 8, 8\) on cpu, expected float32"),
        ({"time": inputs["time"][:2]}, r"'time' is torch.float32 \(2,\)"),
        ({"label": inputs["label"].int()}, "'label' is torch.int32"),
    ):
        with pytest.raises(EngineError, match=message):
            session.run({**inputs, **change})
    with pytest.raises(EngineError, match="input 'latent' is missing"):
        session.run({name: value for name, value in inputs.items() if name != "latent"})


def test_a_missing_package_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    """Without TensorRT the engine says so when it is opened, and not at the first request."""
    for name in OURS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr("export.runtime.device._checked", lambda device: torch.device("cuda", 0))
    with pytest.raises(EngineError, match="'tensorrt' needs a package that is not installed"):
        open_device_runtime("tensorrt", torch.device("cuda"))
