"""The torch engine on a device: the modules themselves, in the precision that the manifest gives to each network.

**Half precision** is autocast: convolutions, linear layers, matrix products and attention in half precision, norms,
softmax, exponentials and times in float32. Weights of convolutions and linear layers are cast once, when they are
loaded; all others (norms, embeddings) stay float32. A linear layer with fewer than 8 inputs or outputs stays float32
altogether: it makes an energy, costs nothing, and half precision would round what it says to 8 or 11 bits.
`export.precision` gives exported graphs the same types, and says why.

**Capture.** Nothing here waits for the device or reads from it, gradients included, whose backward pass runs on the
stream of its forward pass. Autocast's cache of casts is off, as it would hold tensors of a captured graph's pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from models.bundle import Bundle
from models.card import ModelCard
from models.checkpoint import load_modules
from models.networks.resample import Double, Halve, HalvingConvolution
from models.run import network_of

from . import EngineError

NARROW = 8
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class TorchDeviceSession:
    """See `DeviceSession`."""

    capturable = True

    def __init__(self, name: str, card: ModelCard, modules: _Modules, dtype: torch.dtype, channels_last: bool) -> None:
        spec = card.networks[name]
        self.name, self.dtype, self.channels_last = name, dtype, channels_last
        self._modules = modules  # kept, so that the next network of this bundle finds them
        self._network = network_of(card, name, {spec.module: modules.by_name[spec.module]})
        self._types = [dtype if tensor.shape else torch.float32 for tensor in spec.outputs]

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """See `DeviceSession.run`."""
        outputs = self._network(**inputs)
        return tuple(self._finished(*pair) for pair in zip(outputs, self._types, strict=True))

    def _finished(self, output: Tensor, dtype: torch.dtype) -> Tensor:
        last = self.channels_last and output.dim() == 4
        return output.to(dtype).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


class TorchDeviceRuntime:
    """Torch on the CPU or a GPU.

    Opening it on a GPU sets torch's TF32 switches off, for the process: float32 means float32, in products and in
    convolutions, where torch's own default is TF32 (10 bits). It also lets cuDNN time its algorithms on the first run
    of each shape, which belongs to the warm-up; if it is to be deterministic it may not, since two starts could choose
    differently, and of the algorithms only those are taken that add up in one order.
    """

    name = "torch"

    def __init__(self, device: torch.device, deterministic: bool = False) -> None:
        """deterministic: see `open_device_runtime`."""
        self.device = device
        self._loaded: WeakValueDictionary[Any, _Modules] = WeakValueDictionary()
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cudnn.benchmark = not deterministic
            torch.backends.cudnn.deterministic = deterministic
            # Else each new shape would have all unused memory given back, which waits for the device while it serves.
            torch._C._cudnn_set_conv_benchmark_empty_cache(False)

    def load(self, bundle: Bundle, network: str) -> TorchDeviceSession:
        """See `DeviceRuntime.load`."""
        card = bundle.card
        if network not in card.networks:
            raise EngineError(f"{bundle.directory}: no network {network!r}; there are {sorted(card.networks)}")
        dtype = DTYPES[bundle.manifest.graphs[network].precision]
        images = any(len(tensor.shape) == 3 for tensor in card.networks[network].inputs)
        channels_last = images and dtype != torch.float32  # it is for tensor cores, which float32 does not use
        return TorchDeviceSession(network, card, self._modules(bundle, dtype, channels_last), dtype, channels_last)

    def _modules(self, bundle: Bundle, dtype: torch.dtype, channels_last: bool) -> _Modules:
        """The modules that a bundle's networks use, on the device; the same ones for all its networks."""
        contents = tuple((name, spec.sha256) for name, spec in sorted(bundle.card.modules.items()))
        key = (bundle.directory, contents, dtype, channels_last)
        modules = self._loaded.get(key)
        if modules is None:
            modules = self._loaded[key] = _Modules(bundle, self.device, dtype, channels_last)
        return modules


class _Modules:
    """The modules of a bundle that networks run, in one precision and memory format."""

    def __init__(self, bundle: Bundle, device: torch.device, dtype: torch.dtype, channels_last: bool) -> None:
        card = bundle.card
        run = {spec.module for spec in card.networks.values()}
        wanted = run | {part for name in run for part in card.modules[name].parts.values()}
        modules = load_modules(bundle.directory, {name: card.modules[name] for name in wanted})
        form = torch.channels_last if channels_last else torch.preserve_format
        for module in modules.values():
            module.to(device)
            if dtype != torch.float32:
                for layer in module.modules():
                    _cast(layer, dtype, device)
            module.to(memory_format=form)  # type: ignore[call-overload]  # the stubs do not know it
        self.by_name: dict[str, nn.Module] = {
            name: modules[name] if dtype == torch.float32 else _Autocast(modules[name], device, dtype) for name in run
        }


class _Autocast(nn.Module):
    """A module under autocast; its backward pass is outside, as it should be: each operator's runs in its own type."""

    def __init__(self, module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.device_type, self.dtype = module, device.type, dtype

    def forward(self, **inputs: Tensor) -> Any:
        with torch.autocast(self.device_type, self.dtype, cache_enabled=False):
            return self.module(**inputs)


def _cast(layer: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Cast a layer's own weights, if autocast would cast them at each call."""
    if isinstance(layer, nn.Linear) and min(layer.in_features, layer.out_features) < NARROW:

        def forward(values: Tensor) -> Tensor:
            with torch.autocast(device.type, enabled=False):
                return functional.linear(values.float(), layer.weight, layer.bias)

        layer.forward = forward  # type: ignore[method-assign, assignment]
    elif isinstance(layer, (nn.Linear, _ConvNd)):
        layer.to(dtype)
    elif isinstance(layer, (Double, Halve, HalvingConvolution)):
        layer.kernel = layer.kernel.to(dtype)  # multiples of 1/64, which half precision holds
