"""Engines on a device: the protocol's promises, held on the CPU."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from export.parity import draw_inputs
from export.runtime import DEVICE_ENGINES, EngineError
from export.runtime.device import DeviceSession, open_device_runtime
from export.runtime.torch_device import TorchDeviceRuntime, _cast
from models.bundle import Bundle, load_bundle
from models.card import NetworkSpec
from models.checkpoint import load_modules
from models.networks.resample import Double, Halve, HalvingConvolution
from models.run import energy_gradient, network_of

CPU = torch.device("cpu")
BOUNDS = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}
"""Several roundings of 2^-24, 2^-11 and 2^-8 in networks of a few layers."""


def in_precision(bundle: Bundle, precision: str) -> Bundle:
    """The bundle as if all its networks had been exported in that precision."""
    graphs = {
        name: msgspec.structs.replace(graph, precision=precision) for name, graph in bundle.manifest.graphs.items()
    }
    return Bundle(bundle.directory, msgspec.structs.replace(bundle.manifest, graphs=graphs))


def for_session(session: DeviceSession, spec: NetworkSpec, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs in the session's types and memory format."""
    given = {}
    for tensor in spec.inputs:
        value = inputs[tensor.name]
        if tensor.shape and tensor.dtype == "float32":
            value = value.to(session.dtype)
        if value.dim() == 4 and session.channels_last:
            value = value.contiguous(memory_format=torch.channels_last)
        given[tensor.name] = value
    return given


def assert_keeps_its_word(bundle: Bundle, precision: str, bound: float, rows: int = 3) -> None:
    """Every network: types, shapes, memory format, and values within the bound of float32 torch's."""
    runtime = open_device_runtime("torch", CPU)
    for network, spec in bundle.card.networks.items():
        session = runtime.load(in_precision(bundle, precision), network)
        assert (session.name, session.capturable) == (network, True)
        assert str(session.dtype) == f"torch.{precision}"
        inputs = draw_inputs(bundle.card, spec, rows, seed=4)
        outputs = session.run(for_session(session, spec, inputs))
        modules = load_modules(bundle.directory, bundle.card.modules)
        with torch.no_grad():
            expected = network_of(bundle.card, network, modules)(**inputs)
        for tensor, output, exact in zip(spec.outputs, outputs, expected, strict=True):
            assert output.shape == (rows, *tensor.shape)
            assert output.dtype == (session.dtype if tensor.shape else torch.float32)
            assert not output.requires_grad
            last = session.channels_last and output.dim() == 4
            assert output.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
            error = (output.float() - exact).abs().max() / exact.abs().max().clamp_min(1.0)
            assert error <= bound, (network, tensor.name, float(error))


@pytest.mark.parametrize("precision", BOUNDS)
def test_the_torch_engine_keeps_its_word(bundle: Bundle, precision: str):
    """In each precision the outputs have the promised types and format, and are float32 torch's to rounding."""
    assert_keeps_its_word(bundle, precision, BOUNDS[precision])


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("name", ["digits-ddpm", "digits-hat", "digits-latent"])
def test_the_torch_engine_on_shipped_models(repository: Path, name: str, precision: str):
    """So do the shipped U-Net with attention, the compositions with gradients in three registers, and the hierarchy."""
    newest = max((repository / name).iterdir(), key=lambda path: int(path.name))
    assert_keeps_its_word(load_bundle(newest), precision, 10 * BOUNDS[precision])


def test_float32_gives_the_bytes_of_the_oracle(bundle: Bundle):
    """In float32 on the CPU nothing is done to a network: its outputs are those of the offline loop, to the bit."""
    session = open_device_runtime("torch", CPU).load(bundle, "energy-gradient")
    inputs = draw_inputs(bundle.card, bundle.card.networks["energy-gradient"], 5, seed=1)
    (module,) = load_modules(bundle.directory, {"richenergy": bundle.card.modules["richenergy"]}).values()
    for output, exact in zip(session.run(inputs), energy_gradient(module, ("sample",), **inputs), strict=True):
        assert torch.equal(output, exact)
    assert not session.channels_last


def test_weights_are_cast_once_ahead(bundle: Bundle):
    """No call casts a weight of a convolution or linear layer; norms, embeddings and the energy's layer are float32."""
    session = open_device_runtime("torch", CPU).load(in_precision(bundle, "bfloat16"), "energy-gradient")
    module = session._modules.by_name["richenergy"].module
    types = {name: parameter.dtype for name, parameter in module.named_parameters()}
    half = {name for name, dtype in types.items() if dtype == torch.bfloat16}
    layers = {name.rpartition(".")[0] for name in half}
    assert layers == {"first", "strided", "dilated", "transposed", "time", "mix"}
    assert half == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


@pytest.mark.parametrize(
    "layer", [Halve(4), Double(4), HalvingConvolution(4, 6)], ids=lambda layer: type(layer).__name__
)
def test_filters_are_cast_ahead_without_loss(layer: torch.nn.Module):
    """The binomial filters of resampling are exact in half precision, and no call casts them."""
    before = layer.kernel
    _cast(layer, torch.bfloat16, CPU)
    assert layer.kernel.dtype == torch.bfloat16
    assert torch.equal(layer.kernel.float(), before)


def test_an_energy_is_not_rounded_to_half(bundle: Bundle):
    """Energies that differ by less than bfloat16 can tell are told apart."""
    session = open_device_runtime("torch", CPU).load(in_precision(bundle, "bfloat16"), "energy-gradient")
    spec = bundle.card.networks["energy-gradient"]
    energies = session.run(for_session(session, spec, draw_inputs(bundle.card, spec, 64, seed=0)))[0]
    assert (energies != energies.bfloat16().float()).float().mean() > 0.9


def test_networks_of_a_bundle_share_their_modules(repository: Path):
    """The weights of several networks are in memory once, and go when no network needs them."""
    newest = max((repository / "digits-vdrme").iterdir(), key=lambda path: int(path.name))
    bundle = load_bundle(newest)
    runtime = open_device_runtime("torch", CPU)
    sessions = [runtime.load(bundle, name) for name in ("energy", "energy-gradient")]
    assert sessions[0]._modules is sessions[1]._modules
    sessions.clear()
    gc.collect()
    assert not runtime._loaded


def test_what_cannot_be_opened_is_named(bundle: Bundle):
    """Unknown engines, devices that are not there and networks that do not exist."""
    with pytest.raises(EngineError, match=r"'jax'; known: torch, onnxruntime, tensorrt"):
        open_device_runtime("jax", CPU)
    with pytest.raises(EngineError, match="must be cpu or cuda:N, got mps"):
        open_device_runtime("torch", torch.device("mps"))
    with pytest.raises(EngineError, match=r"'classifier'.*'denoiser'"):
        open_device_runtime("torch", CPU).load(bundle, "classifier")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("engine", DEVICE_ENGINES)
def test_cuda_that_is_not_there_is_named(engine: str):
    """No engine opens a device that torch does not find."""
    with pytest.raises(EngineError, match="cuda:0: torch finds no CUDA device"):
        open_device_runtime(engine, torch.device("cuda:0"))


@pytest.fixture
def switches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """torch's, of the process, as they were afterwards. What was told the one that a torch without CUDA lacks."""
    told: list[bool] = []
    monkeypatch.setattr(torch._C, "_cudnn_set_conv_benchmark_empty_cache", told.append, raising=False)
    places = [(torch.backends.cuda.matmul, "allow_tf32")]
    places += [(torch.backends.cudnn, name) for name in ("allow_tf32", "benchmark", "deterministic")]
    before = [getattr(*place) for place in places]
    yield told
    for place, value in zip(places, before, strict=True):
        setattr(*place, value)


@pytest.mark.parametrize("deterministic", [True, False])
def test_cudnn_may_time_its_algorithms_where_bytes_do_not_count(switches: list[bool], deterministic: bool):
    """Else it takes none that adds up in another order each time, and the same ones in every start."""
    cudnn = torch.backends.cudnn
    cudnn.benchmark, cudnn.deterministic = deterministic, not deterministic
    cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    TorchDeviceRuntime(torch.device("cuda", 0), deterministic)
    assert switches == [False], "timing gives all unused memory back, beside other models that are served"
    assert (cudnn.benchmark, cudnn.deterministic) == (not deterministic, deterministic)
    assert not cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
