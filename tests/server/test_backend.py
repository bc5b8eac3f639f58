"""Which device a server runs on, and what is said where it cannot."""

from __future__ import annotations

import logging
from pathlib import Path

import onnxruntime
import pytest

from export.runtime import EngineError, device
from server import backend
from server.backend import DeviceBackend, HostBackend, open_backends
from server.config import Config, ConfigError, Limits
from server.loop.device import stream


def config(**options) -> Config:
    return Config(Path("repository"), **options)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu,cuda:0", "cuda:0,", "cuda:0 ,cuda:1", "", "mps"])
def test_a_device_that_is_none_is_refused(device: str):
    """With what is accepted."""
    with pytest.raises(ConfigError, match="device must be auto, cpu, cuda or cuda:N"):
        config(device=device)


def test_a_device_is_named_once():
    """Two engines on one GPU would wait for each other."""
    with pytest.raises(ConfigError, match="names one twice"):
        config(device="cuda:1,cuda:0,cuda:1")


def test_without_a_gpu_auto_is_the_cpu(monkeypatch: pytest.MonkeyPatch):
    """ONNX Runtime works on NumPy arrays there, torch on its own tensors."""
    monkeypatch.setattr(backend, "_gpus", lambda: 0)
    (host,) = open_backends(config(threads=1))
    assert isinstance(host, HostBackend)
    (torch,) = open_backends(config(engine="torch", threads=1))
    assert isinstance(torch, DeviceBackend)
    assert (torch.device, torch.depth) == ("cpu", 1)


def test_an_onnx_runtime_without_cuda_stays_on_the_cpu_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """A GPU that this engine cannot use is no reason not to serve."""
    monkeypatch.setattr(backend, "_gpus", lambda: 1)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with caplog.at_level(logging.WARNING):
        (found,) = open_backends(config(threads=1))
    assert isinstance(found, HostBackend)
    assert "no CUDA" in caplog.text


def test_all_gpus_have_a_backend_each(monkeypatch: pytest.MonkeyPatch):
    """`cuda` asks the driver how many there are."""
    opened = []
    monkeypatch.setattr(backend, "_gpus", lambda: 3)
    monkeypatch.setattr(backend, "_open", lambda config, device: opened.append(device))
    open_backends(config(device="cuda", engine="torch"))
    assert opened == ["cuda:0", "cuda:1", "cuda:2"]


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_gpus_engine_is_told_whether_bytes_count(monkeypatch: pytest.MonkeyPatch, deterministic: bool):
    """`--deterministic` is more than padding there."""
    told = []

    class Stream:
        def __init__(self, device):
            self.device, self.steps = device, None

    monkeypatch.setattr(stream, "CudaStream", Stream)
    monkeypatch.setattr(device, "open_device_runtime", lambda *_, **options: told.append(options))
    open_backends(config(engine="torch", device="cuda:0", deterministic=deterministic))
    assert told[-1] == {"deterministic": deterministic}


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"device": "cuda"}, ConfigError, "^device cuda: NVIDIA's driver shows no GPU"),
        ({"engine": "torch", "device": "cuda:77"}, ConfigError, "^device cuda:77: "),
        ({"engine": "jax"}, EngineError, "unknown engine 'jax'"),
        ({"engine": "tensorrt", "device": "cpu"}, EngineError, "tensorrt"),
    ],
)
def test_what_cannot_be_opened_is_said(options: dict, kind: type, said: str, monkeypatch: pytest.MonkeyPatch):
    """Which engine or device, and why; a device that is not there is the option `device`'s fault."""
    monkeypatch.setattr(backend, "_gpus", lambda: 0)
    with pytest.raises(kind, match=said):
        open_backends(config(**options))


@pytest.mark.parametrize("name", ["step_seconds", "turn_seconds", "max_batch_rows"])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_a_bound_that_bounds_nothing_is_refused(name: str, value: float):
    """An infinite time would only show in the loop."""
    with pytest.raises(ConfigError, match=f"{name} must be positive and finite"):
        Limits(**{name: value})
