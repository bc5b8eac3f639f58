"""Network architectures by name.

A network is an `nn.Module` whose `forward` takes keyword tensors, a subset of

- `sample` (B, channels, height, width) float32, the noisy image,
- `time` (B,) float32, the network's time 0..999 (`t - 1` for the schedule's step t),
- `label` (B,) int64, with the null label as an index of its own,
- `latent` (B, ...) float32, fresh Gaussian noise,
- `target_time` (B,) float32, the network time that a generator's step arrives at,

and returns one plain tensor: a noise prediction shaped like `sample`, or energies (B,), low for in-distribution.
No row depends on another one, and control flow never depends on values:
every network can be exported with a dynamic batch.

Importing this package imports no architecture: each is loaded when it is first built.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..bundle import BundleError

if TYPE_CHECKING:
    from torch import nn

ARCHITECTURES: Mapping[str, tuple[str, str]] = {
    "checkerboard-energy": (".checkerboard", "Energy"),
    "checkerboard-generator": (".checkerboard", "Generator"),
    "dit-energy": (".dit", "Energy"),
    "dit-generator": (".dit", "Generator"),
    "hat-large-denoiser": (".hat_large", "Denoiser"),
    "hat-large-energy": (".hat_large", "Energy"),
    "hat-large-proposal": (".hat_large", "Generator"),
    "latent-energies": (".latent", "Energies"),
    "latent-hierarchy": (".latent", "Hierarchy"),
    "latent-image": (".latent", "Image"),
    "latent-layer-energy": (".latent", "LayerEnergy"),
    "latent-posterior": (".latent", "Posterior"),
    "latent-posterior-means": (".latent", "PosteriorMeans"),
    "latent-prior-energy": (".latent", "PriorEnergy"),
    "latent-prior-image": (".latent", "PriorImage"),
    "ncsnpp-energy": (".ncsnpp", "ConditionalEnergy"),
    "ncsnpp-generator": (".ncsnpp", "Generator"),
    "nvae-decoder": (".nvae_prior", "Decoder"),
    "nvae-energies": (".nvae_prior", "Energies"),
    "nvae-image": (".nvae_prior", "PriorImage"),
    "nvae-prior": (".nvae_prior", "Prior"),
    "nvae-prior-energy": (".nvae_prior", "PriorEnergy"),
    "digits-classifier": (".classifier", "Classifier"),
    "gdim-generator": (".gdim", "Generator"),
    "gdim-energy": (".gdim", "ConditionalEnergy"),
    "hat-composition": (".hat", "Composition"),
    "hat-denoiser": (".hat", "Denoiser"),
    "hat-energy": (".hat", "Energy"),
    "hat-generator": (".hat", "HatGenerator"),
    "hat-joint-energy": (".hat", "JointEnergy"),
    "hat-proposal": (".hat", "Proposal"),
    "hat-transition": (".hat", "Transition"),
    "unet2d": (".unet2d", "UNet2D"),
    "vdrme-generator": (".vdrme", "Generator"),
    "vdrme-energy": (".vdrme", "Energy"),
}
"""Architecture name -> (module of this package, class)."""


def build(
    architecture: str, config: Mapping[str, Any], parts: Mapping[str, nn.Module] = MappingProxyType({})
) -> nn.Module:
    """Build an untrained network; `config` and the modules `parts` are the keyword arguments of its class.

    Keys that start with an underscore are ignored: diffusers writes its class name and version there.

    Raises:
        BundleError: unknown architecture, or a configuration that its class does not accept.
    """
    if architecture not in ARCHITECTURES:
        raise BundleError(f"unknown architecture {architecture!r}; known: {', '.join(sorted(ARCHITECTURES))}")
    module_name, class_name = ARCHITECTURES[architecture]
    network_class = getattr(import_module(module_name, __name__), class_name)
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        network: nn.Module = network_class(**arguments, **parts)
    except (TypeError, ValueError) as error:
        raise BundleError(f"architecture {architecture!r} does not accept its config: {error}") from error
    return network
