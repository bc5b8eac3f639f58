"""What each layer of a latent hierarchy tells by itself, beside what the layers above k tell together (SPEC 5).

AUROC is to rise with k where lower layers mislead. Whether they do shows in their own energies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from ..card import ModelCard
from ..metrics.outliers import OOD_SETS, Images
from ..networks.latent import Energies, Hierarchy, Posterior, infer, log_marginal
from ..samplers.latent import LAYER_ENERGY
from .measure import Checkpoint, ScaleQuality, measure_detector

EXPLANATION = """\
AUROC of the sum of f_i over the layers above k (as in the table above), by inference and by a step of diffusion and
back, and of each f_i alone, by inference; layer 1 is nearest to the image. AUROC rises with k where leaving out the
lower layers helps. The two columns "k = 2 less k = 0" say how far it does."""


def has_layers(card: ModelCard) -> bool:
    """Whether the model has an energy of each layer of latents."""
    return LAYER_ENERGY in card.networks


def measure_layers(
    checkpoint: Checkpoint, test: Images, seeds: Sequence[int], report: Callable[[str], None]
) -> list[ScaleQuality]:
    """Detection by `-logsumexp_y f_i(z_i, 0)_y` of each layer i alone, z inferred: `MODEL layer-i`.

    Raises:
        ValueError: the model has no hierarchy, posterior and energies.
    """
    found = []
    for layer in range(1, len(checkpoint.card.registers) + 1):
        name = f"{checkpoint.card.name} layer-{layer}"
        report(name)
        found.append(measure_detector(name, partial(layer_energy, checkpoint, layer), test, seeds))
    return found


@torch.no_grad()
def layer_energy(checkpoint: Checkpoint, layer: int, images: Images) -> npt.NDArray[np.float64]:
    """`-logsumexp_y f_i(z_i, 0)_y`, (n,), of the z_i inferred of images (n, channels, side, side); i: `layer`.

    Raises:
        ValueError: the model has no hierarchy, posterior and energies.
    """
    hierarchy, posterior, energies = (checkpoint.modules.get(name) for name in ("hierarchy", "posterior", "energies"))
    if not (isinstance(hierarchy, Hierarchy) and isinstance(posterior, Posterior) and isinstance(energies, Energies)):
        raise ValueError(f"{checkpoint.card.name} has no hierarchy, posterior and energies")
    z = hierarchy(infer(hierarchy, posterior, torch.tensor(images)).latents)
    logits = energies(z, torch.zeros(len(images)))[layer - 1]
    return -log_marginal(logits).squeeze(1).double().numpy()


def layers_table(model: str, detectors: Sequence[ScaleQuality], layers: Sequence[ScaleQuality]) -> str:
    """One line a set of outliers, and their mean. detectors: of all models; layers: of each layer alone."""
    by_name = {entry.detector.removeprefix(f"{model} "): entry for entry in detectors if entry.model == model}
    alone = [entry for entry in layers if entry.model == model]
    heading = ["set"]
    columns: list[npt.NDArray[np.float64]] = []
    for scheme in ("inference", "diffusion"):
        above = [_aurocs(by_name[f"{scheme}-{k}"]) for k in range(len(alone))]
        heading += [f"{scheme}, k = {k}" for k in range(len(alone))] + [f"k = {len(alone) - 1} less k = 0"]
        columns += [*above, above[-1] - above[0]]
    heading += [f"layer {layer} alone" for layer in range(1, len(alone) + 1)]
    columns += [_aurocs(entry) for entry in alone]
    names = [*(entry.name for entry in OOD_SETS), "mean"]
    lines = [heading, ["---"] * len(heading)]
    for index, name in enumerate(names):
        values = [column[index] if index < len(column) else column.mean() for column in columns]
        signed = ["less" in title for title in heading[1:]]
        lines.append([name, *(f"{v:+.3f}" if sign else f"{v:.3f}" for v, sign in zip(values, signed, strict=True))])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _aurocs(entry: ScaleQuality) -> npt.NDArray[np.float64]:
    return np.array([result.metrics.auroc for result in entry.results])
