"""ONNX Runtime by addresses: the binding on the CPU, and what it asks of CUDA against a fake that knows the
documented options alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from export.parity import draw_inputs
from export.runtime import EngineError, onnxruntime_device
from export.runtime.device import open_device_runtime
from export.runtime.onnxruntime import OnnxRuntime
from export.runtime.onnxruntime_device import CUDA, OnnxDeviceRuntime
from models.bundle import Bundle, load_bundle

from .test_device import in_precision

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
OPTIONS = {  # of the CUDA provider's documentation
    *("device_id", "user_compute_stream", "do_copy_in_default_stream", "gpu_mem_limit", "arena_extend_strategy"),
    *("cudnn_conv_algo_search", "cudnn_conv_use_max_workspace", "cudnn_conv1d_pad_to_nc1d", "enable_cuda_graph"),
    *("enable_skip_layer_norm_strict_mode", "use_tf32", "gpu_external_alloc", "gpu_external_free", "prefer_nhwc"),
}


def draw(bundle: Bundle, network: str, rows: int, seed: int = 0) -> dict[str, Tensor]:
    return draw_inputs(bundle.card, bundle.card.networks[network], rows, seed)


def assert_same_bytes(bundle: Bundle, rows: int) -> None:
    device, host = open_device_runtime("onnxruntime", CPU), OnnxRuntime(torch.get_num_threads())
    for network in bundle.card.networks:
        session, reference = device.load(bundle, network), host.load(bundle, network)
        assert (session.name, session.dtype, session.capturable) == (network, torch.float32, False)
        inputs = draw(bundle, network, rows)
        expected = reference.run({name: value.numpy() for name, value in inputs.items()})
        for found, wanted in zip(session.run(inputs), expected, strict=True):
            assert np.array_equal(found.numpy(), wanted)


@pytest.mark.parametrize("rows", [1, 5])
def test_bound_tensors_give_the_same_bytes(bundle: Bundle, large_bundle: Bundle, rows: int):
    """Reading and writing torch's memory is the same run as with NumPy arrays, weights inside and beside."""
    assert_same_bytes(bundle, rows)
    assert_same_bytes(large_bundle, rows)


def test_bound_tensors_on_a_shipped_model(repository: Path):
    """Seven networks with four outputs and registers of several shapes."""
    assert_same_bytes(load_bundle(max((repository / "digits-hat").iterdir())), rows=3)


def test_memory_of_any_layout_and_of_any_run(bundle: Bundle):
    """Inputs that are not contiguous are read as what they say, and outputs belong to the caller."""
    session = open_device_runtime("onnxruntime", CPU).load(bundle, "denoiser")
    inputs = draw(bundle, "denoiser", 4)
    (first,) = session.run(inputs)
    kept = first.clone()
    (second,) = session.run(draw(bundle, "denoiser", 2, seed=1))
    assert torch.equal(first, kept)
    assert len(second) == 2
    strided = {name: torch.stack([value, value], dim=1)[:, 0] for name, value in inputs.items()}
    assert not strided["sample"].is_contiguous()
    assert torch.equal(session.run(strided)[0], kept)


def test_tensors_that_do_not_fit_are_refused(bundle: Bundle):
    """Type, shape and rows are held against the card before an address is taken."""
    session = open_device_runtime("onnxruntime", CPU).load(bundle, "denoiser")
    inputs = draw(bundle, "denoiser", 3)
    with pytest.raises(EngineError, match=r"'sample' is torch.bfloat16 .* expected float32"):
        session.run({**inputs, "sample": inputs["sample"].bfloat16()})
    with pytest.raises(EngineError, match=r"'time' is torch.float32 \(4,\) on cpu, expected float32 \(3,\)"):
        session.run({**inputs, "time": torch.zeros(4)})


class Stream:
    """What is used of `torch.cuda.Stream`."""

    def __init__(self, handle: int) -> None:
        self.cuda_stream = handle


class FakeBinding:
    """`onnxruntime.IOBinding` on a GPU whose memory is the CPU's: wraps the real one, with its signatures."""

    def __init__(self, binding: Any) -> None:
        self._binding = binding

    def bind_input(self, name: str, device_type: str, device_id: int, element_type: Any, shape: Any, buffer_ptr: int):
        assert (device_type, device_id) == ("cuda", 0)
        self._binding.bind_input(name, "cpu", 0, element_type, shape, buffer_ptr)

    def bind_output(self, name: str, device_type: str, device_id: int, element_type: Any, shape: Any, buffer_ptr: int):
        assert (device_type, device_id) == ("cuda", 0)
        self._binding.bind_output(name, "cpu", 0, element_type, shape, buffer_ptr)


class FakeSession:
    """`onnxruntime.InferenceSession` with a CUDA provider. It has no `run`: that would copy and wait."""

    starts = True
    falls_back = True
    settings: Mapping[str, str]
    options: onnxruntime.SessionOptions

    def __init__(self, graph: bytes, options: onnxruntime.SessionOptions, providers: Any) -> None:
        (cuda, settings), *others = providers
        assert (cuda, others) == (CUDA, ["CPUExecutionProvider"])
        assert settings.keys() <= OPTIONS
        assert all(isinstance(value, str) for value in settings.values())
        FakeSession.settings, FakeSession.options = settings, options
        self._real = REAL(graph, options, providers=others)

    def disable_fallback(self) -> None:
        self.falls_back = False

    def get_inputs(self) -> Any:
        return self._real.get_inputs()

    def get_outputs(self) -> Any:
        return self._real.get_outputs()

    def get_providers(self) -> list[str]:
        return [CUDA, "CPUExecutionProvider"] if self.starts else ["CPUExecutionProvider"]

    def io_binding(self) -> FakeBinding:
        return FakeBinding(self._real.io_binding())

    def run_with_iobinding(self, iobinding: FakeBinding, run_options: onnxruntime.RunOptions) -> None:
        assert not self.falls_back  # to the CPU, unasked
        assert run_options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        self._real.run_with_iobinding(iobinding._binding, run_options)


REAL = onnxruntime.InferenceSession


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    checked, new = onnxruntime_device.checked_inputs, onnxruntime_device.new_outputs
    monkeypatch.setattr(onnxruntime_device, "checked_inputs", lambda spec, inputs, device: checked(spec, inputs, CPU))
    monkeypatch.setattr(onnxruntime_device, "new_outputs", lambda spec, inputs, device: new(spec, inputs, CPU))


def test_cuda_runs_on_torchs_stream_and_waits_for_nothing(
    cuda: None, bundle: Bundle, large_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
):
    """Stream and device are torch's, float32 is float32, and a run on another stream is refused."""
    stream = Stream(4711)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    for source in (bundle, large_bundle):
        session = OnnxDeviceRuntime(GPU, stream).load(source, "denoiser")
        settings = FakeSession.settings
        assert (settings["user_compute_stream"], settings["device_id"]) == ("4711", "0")
        assert (settings["use_tf32"], settings["do_copy_in_default_stream"]) == ("0", "1")
        inputs = draw(source, "denoiser", 3)
        monkeypatch.setattr(onnxruntime, "InferenceSession", REAL)
        (expected,) = open_device_runtime("onnxruntime", CPU).load(source, "denoiser").run(inputs)
        monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)
        assert torch.equal(session.run(inputs)[0], expected)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(4712))
    with pytest.raises(EngineError, match="loaded for another stream"):
        session.run(inputs)


def test_a_graph_that_cuda_has_no_kernels_for_is_refused_with_what_to_do(
    cuda: None, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
):
    """bfloat16 is what it lacks some for; another reason stands for itself."""

    def refuse(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("NOT_IMPLEMENTED: ConvTranspose(22)")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(
        EngineError, match=r"ConvTranspose\(22\); .* the engine torch or tensorrt, or --precision float16"
    ):
        OnnxDeviceRuntime(GPU, Stream(1)).load(in_precision(bundle, "bfloat16"), "denoiser")
    with pytest.raises(EngineError, match=r"ConvTranspose\(22\)$"):
        OnnxDeviceRuntime(GPU, Stream(1)).load(bundle, "denoiser")


@pytest.mark.parametrize(("deterministic", "search"), [(True, "HEURISTIC"), (False, "EXHAUSTIVE")])
def test_where_bytes_count_no_algorithm_is_chosen_by_its_time(
    cuda: None, bundle: Bundle, deterministic: bool, search: str
):
    """Two starts could choose differently."""
    OnnxDeviceRuntime(GPU, Stream(1), deterministic).load(bundle, "denoiser")
    assert FakeSession.settings["cudnn_conv_algo_search"] == search
    assert FakeSession.options.use_deterministic_compute is deterministic


def test_cuda_that_does_not_start_is_told(cuda: None, bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    """ONNX Runtime falls back to the CPU without an error; the default stream cannot be given; no CUDA, no session."""
    monkeypatch.setattr(FakeSession, "starts", False)
    with pytest.raises(EngineError, match="could not start CUDA"):
        OnnxDeviceRuntime(GPU, Stream(1)).load(bundle, "denoiser")
    with pytest.raises(EngineError, match="a stream of its own on cuda:0"):
        OnnxDeviceRuntime(GPU, Stream(0))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EngineError, match="onnxruntime-gpu"):
        OnnxDeviceRuntime(GPU, Stream(1))
