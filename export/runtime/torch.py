"""The torch engine: the modules themselves, for machines without ONNX Runtime and to compare with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.bundle import Bundle, NetworkSpec
from models.checkpoint import load_modules
from models.run import energy_gradient

from . import EngineError


class TorchSession:
    """A network of a card as a torch module in eval mode."""

    device = torch.device("cpu")

    def __init__(self, name: str, spec: NetworkSpec, module: nn.Module) -> None:
        self.name = name
        self._module = module
        self._gradient = spec.function == "energy_gradient"

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """See `Session.run`."""
        if self._gradient:
            return energy_gradient(self._module, **inputs)
        return (self._module(**inputs),)


class TorchRuntime:
    """Torch on the CPU. The number of threads is a setting of the whole process, as torch has it."""

    name = "torch"

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)

    def load(self, bundle: Bundle, network: str) -> TorchSession:
        """See `Runtime.load`."""
        spec = bundle.card.networks.get(network)
        if spec is None:
            raise EngineError(f"{bundle.directory}: no network {network!r}; there are {sorted(bundle.card.networks)}")
        modules = load_modules(bundle.directory, {spec.module: bundle.card.modules[spec.module]})
        return TorchSession(network, spec, modules[spec.module])
