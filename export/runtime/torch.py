"""The torch engine: the modules themselves, for machines without ONNX Runtime and to compare with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from models.bundle import Bundle
from models.checkpoint import load_modules
from models.run import Network, network_of

from . import Array, EngineError


class TorchSession:
    """A network of a card as a torch module in eval mode."""

    def __init__(self, name: str, network: Network) -> None:
        self.name = name
        self._network = network

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Array]) -> tuple[npt.NDArray[np.float32], ...]:
        """See `Session.run`."""
        outputs = self._network(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        return tuple(output.numpy() for output in outputs)


class TorchRuntime:
    """Torch on the CPU. The number of threads is a setting of the whole process, as torch has it."""

    name = "torch"

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)

    def load(self, bundle: Bundle, network: str) -> TorchSession:
        """See `Runtime.load`."""
        card = bundle.card
        if network not in card.networks:
            raise EngineError(f"{bundle.directory}: no network {network!r}; there are {sorted(card.networks)}")
        module = card.networks[network].module
        wanted = {module, *card.modules[module].parts.values()}
        modules = load_modules(bundle.directory, {name: card.modules[name] for name in wanted})
        return TorchSession(network, network_of(card, network, modules))
