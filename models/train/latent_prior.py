"""Training of `digits-latent` (T = 3) and `digits-latent-6`: the diffusion EBM prior of a hierarchical VAE (SPEC 5).

Algorithm 1 on a fixed VAE: draw u_0 from the posterior of training images and t at random, noise it to u_t and u_{t+1},
run K steps of Langevin dynamics from u_{t+1} on the conditional EBM of t, and move F up at u_t, down where the
chain ended (eq. 12). Some rows do so for F_y of their label, the others for the marginal of all labels; every row
trains the softmax classifier that F is as well (eq. 20), here at all t and not at t = 0 alone, so that a label can
steer the chains from the first on.

The sum F alone is what that trains, and what is in which f_i is left to chance. As layers above some k have a prior of
their own, whose energy is to be `sum_{i > k} f_i` where they are scored (section 5.2), a part of the rows trains that
sum on those layers alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import cos, pi, sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..bundle import BundleError
from ..card import (
    EnergySpec,
    ImageSpec,
    LabelSpec,
    ModelCard,
    ModuleSpec,
    NetworkSpec,
    SamplingSpec,
    ScaleSpec,
    TensorSpec,
)
from ..checkpoint import composite_module, load_checkpoint, load_modules, save_checkpoint, save_module
from ..data import CLASSES, NULL_LABEL, LabelledImages, load_digits_split
from ..networks.latent import Energies, Hierarchy, Image, Posterior, chosen, sum_above
from ..run import energy_gradient
from .calibration import calibrate_checkpoint
from .ddpm import Report, drop_labels, learning_rate_factor
from .ema import moving_average
from .latent_vae import SIZES, Vae, VaeRecipe, normals, train_vae
from .provenance import provenance
from .trained import Losses

NAME, NAME_6 = "digits-latent", "digits-latent-6"
LATENTS = ("u1", "u2", "u3")


@dataclass(frozen=True)
class PriorRecipe:
    """Hyperparameters; the defaults are the ones of the shipped checkpoints.

    diffusion_steps: T. langevin_steps: K, in training and by default in sampling. step_size: s in units of sigma_t^2.
    upper_fraction: of the rows, which train the energy of the layers above k = 1..L-1 alone, each k equally often.
    energy_l2: weight of the square of U, without which energies wander off. classification_weight: of the softmax
    classifier's cross-entropy.
    """

    diffusion_steps: int = 3
    seed: int = 0
    batch: int = 128
    iterations: int = 1800
    learning_rate: float = 8e-4
    langevin_steps: int = 30
    step_size: float = 0.1
    label_dropout: float = 0.4
    classification_weight: float = 1.0
    upper_fraction: float = 0.5
    energy_l2: float = 1e-3
    ema_decay: float = 0.995
    width: int = 128


def signal_variances(steps: int) -> tuple[float, ...]:
    """abar_0 = 1, ..., abar_T: the signal variance of u_t. Half a cosine, which ends at .004 where N(0, I) starts."""
    return tuple(cos(0.96 * pi / 2.0 * t / steps) ** 2 for t in range(steps + 1))


def amplitudes(steps: int) -> tuple[float, ...]:
    """alpha_t of `u_{t+1} = alpha_t u_t + sigma_t n` for t = 0..T-1."""
    abar = signal_variances(steps)
    return tuple(sqrt(abar[t + 1] / abar[t]) for t in range(steps))


class PriorTrainer:
    """State of one run of Algorithm 1; `run` is the whole of it."""

    def __init__(self, data: LabelledImages, vae: Vae, recipe: PriorRecipe) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.vae = recipe, vae
        self.random = torch.Generator().manual_seed(recipe.seed)
        self.images, self.labels = torch.tensor(data.images), torch.tensor(data.labels)
        self.abar = torch.tensor(signal_variances(recipe.diffusion_steps))
        self.alpha = torch.tensor(amplitudes(recipe.diffusion_steps))
        self.energies = Energies(SIZES, CLASSES, recipe.width)
        self.energy = UpperEnergy(vae.hierarchy, self.energies)
        self.average = moving_average(self.energies, recipe.ema_decay)
        self.optimiser = torch.optim.Adam(self.energies.parameters(), recipe.learning_rate)

    def run(self, report: Report) -> tuple[Energies, dict[str, float]]:
        """The averaged energies, in eval mode, and the losses of the last tenth."""
        recipe = self.recipe
        rate = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, lambda step: learning_rate_factor(step, recipe.iterations)
        )
        history = Losses()
        for iteration in range(recipe.iterations):
            history.add(self.iterate())
            rate.step()
            if iteration % 20 == 0:
                report(iteration + 1, recipe.iterations, history.recent())
        losses = history.last_tenth(recipe.iterations)
        self.energies.load_state_dict(self.average.module.state_dict())
        return self.energies.eval().requires_grad_(False), losses

    def iterate(self) -> dict[str, float]:
        """One pass of Algorithm 1's loop; returns the losses."""
        recipe = self.recipe
        rows = torch.randint(len(self.labels), (recipe.batch,), generator=self.random)
        t = torch.randint(recipe.diffusion_steps, (recipe.batch,), generator=self.random)
        true_label = self.labels[rows]
        label = drop_labels(true_label, recipe.label_dropout, self.random)
        above = self._draw_above(recipe.batch)
        clean = self.vae.draw(self.images[rows], self.random)
        signal, alpha = self.abar[t, None], self.alpha[t, None]
        positive = _mix(signal.sqrt(), clean, normals(recipe.batch, self.random))
        following = _mix(alpha, positive, normals(recipe.batch, self.random))
        negative = self._chain(following, alpha, t.float(), label, above)
        both = [torch.cat(pair) for pair in zip(positive, negative, strict=True)]
        logits = sum_above(self.energies(self.vae.hierarchy(both), t.float().repeat(2)), above.repeat(2))
        up, down = chosen(logits, label.repeat(2)).chunk(2)
        divergence = down.mean() - up.mean()
        classification = functional.cross_entropy(logits[: recipe.batch], true_label)
        squares = up.square().mean() + down.square().mean()
        loss = divergence + recipe.classification_weight * classification + recipe.energy_l2 * squares
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.energies.parameters(), 10.0)
        self.optimiser.step()
        self.average.update_parameters(self.energies)
        return {
            "divergence": float(divergence.detach()),
            "classification": float(classification.detach()),
            "squares": float(squares.detach()),
        }

    def _draw_above(self, rows: int) -> Tensor:
        """How many layers each row leaves out, (rows,) float32: 0 for most."""
        upper = torch.randint(1, len(SIZES), (rows,), generator=self.random).float()
        chosen = torch.rand(rows, generator=self.random) < self.recipe.upper_fraction
        return torch.where(chosen, upper, torch.zeros_like(upper))

    def _chain(
        self, following: Sequence[Tensor], alpha: Tensor, t: Tensor, label: Tensor, above: Tensor
    ) -> list[Tensor]:
        """K steps of eq. 3 and 13 from u_{t+1}, each row at its own t; the update of `models.samplers.latent`.

        Layers that a row leaves out have no energy, and what becomes of them changes nothing.
        """
        fraction, s = self.recipe.step_size, self.recipe.step_size * (1.0 - alpha * alpha)
        state = list(following)
        self.energies.requires_grad_(False)
        for _ in range(self.recipe.langevin_steps):
            _, *slopes = energy_gradient(
                self.energy, LATENTS, **dict(zip(LATENTS, state, strict=True)), time=t, label=label, above=above
            )
            state = [
                (1.0 - fraction) * u + fraction * alpha * anchor - s * slope + (2.0 * s).sqrt() * noise
                for u, anchor, slope, noise in zip(
                    state, following, slopes, normals(len(label), self.random), strict=True
                )
            ]
        self.energies.requires_grad_(True)
        return state


class UpperEnergy(nn.Module):
    """`networks.latent.PriorEnergy` of the layers above some, which differ by row."""

    def __init__(self, hierarchy: Hierarchy, energies: Energies) -> None:
        super().__init__()
        self.hierarchy, self.energies = hierarchy, energies

    def forward(self, u1: Tensor, u2: Tensor, u3: Tensor, time: Tensor, label: Tensor, above: Tensor) -> Tensor:
        """Energies (B,). u1..u3: (B, sizes[i-1]). time, above: (B,). label: (B,), the null label last."""
        return -chosen(sum_above(self.energies(self.hierarchy([u1, u2, u3]), time), above), label)


def _mix(amplitude: Tensor, latents: Sequence[Tensor], noise: Sequence[Tensor]) -> list[Tensor]:
    """`a u + sqrt(1 - a^2) n` of every layer; amplitude: (B, 1)."""
    deviation = (1.0 - amplitude * amplitude).sqrt()
    return [amplitude * u + deviation * n for u, n in zip(latents, noise, strict=True)]


def train_digits_latent(output: Path, report: Report) -> Path:
    """Train the VAE and a prior of T = 3 steps, and write `digits-latent` below `output`; returns its directory."""
    started = time.perf_counter()
    vae_recipe, recipe = VaeRecipe(), PriorRecipe()
    total = vae_recipe.steps + recipe.iterations
    data = load_digits_split().train
    vae = train_vae(data, vae_recipe, lambda done, _, losses: report(done, total, losses))
    directory = output / NAME
    modules = {
        "hierarchy": save_module(
            directory, "hierarchy", "latent-hierarchy", vae_recipe.hierarchy_config(), vae.hierarchy
        ),
        "posterior": save_module(
            directory, "posterior", "latent-posterior", vae_recipe.posterior_config(), vae.posterior
        ),
        "image": save_module(directory, "image", "latent-image", vae_recipe.image_config(), vae.image),
    }
    training = {"vae": {"recipe": asdict(vae_recipe), "final_losses": vae.losses}}
    energies, losses = PriorTrainer(data, vae, recipe).run(
        lambda done, _, text: report(vae_recipe.steps + done, total, text)
    )
    return _write(directory, recipe, modules, energies, {**training, "final_losses": losses}, started)


def train_digits_latent_6(output: Path, report: Report) -> Path:
    """Train a prior of T = 6 steps for the VAE of the `digits-latent` below `output`; returns its directory.

    Raises:
        BundleError: there is no usable `digits-latent`.
    """
    started = time.perf_counter()
    # Twice the iterations for twice the diffusion steps: each is trained on as many rows as with T = 3.
    recipe = replace(PriorRecipe(), diffusion_steps=6, iterations=2 * PriorRecipe.iterations)
    source = load_checkpoint(output / NAME)
    vae = load_vae(output / NAME)
    directory = output / NAME_6
    names = {"hierarchy": vae.hierarchy, "posterior": vae.posterior, "image": vae.image}
    modules = {
        name: save_module(directory, name, source.modules[name].architecture, source.modules[name].config, module)
        for name, module in names.items()
    }
    training = {"vae": {"from": NAME, **{f"{name}_sha256": modules[name].sha256 for name in names}}}
    energies, losses = PriorTrainer(load_digits_split().train, vae, recipe).run(report)
    return _write(directory, recipe, modules, energies, {**training, "final_losses": losses}, started)


def load_vae(directory: Path) -> Vae:
    """The VAE of a `digits-latent` checkpoint.

    Raises:
        BundleError: the checkpoint is missing, damaged or of another kind.
    """
    loaded = load_modules(directory, load_checkpoint(directory).modules)
    hierarchy, posterior, image = (loaded.get(name) for name in ("hierarchy", "posterior", "image"))
    if not (isinstance(hierarchy, Hierarchy) and isinstance(posterior, Posterior) and isinstance(image, Image)):
        raise BundleError(f"{directory}: has no hierarchy, posterior and image")
    return Vae(hierarchy, posterior, image, {})


def _write(
    directory: Path,
    recipe: PriorRecipe,
    modules: dict[str, ModuleSpec],
    energies: Energies,
    details: Mapping[str, Any],
    started: float,
) -> Path:
    config = {"sizes": SIZES, "classes": CLASSES, "width": recipe.width}
    modules = {**modules, "energies": save_module(directory, "energies", "latent-energies", config, energies)}
    training = {
        "algorithm": "Cui and Han 2024, algorithm 1, with labels at every t (eq. 14, 20)",
        "recipe": asdict(recipe),
        "optimiser": "Adam, warm-up and half a cosine to a tenth; average of the weights",
        **details,
        "seconds": round(time.perf_counter() - started, 1),
        **provenance(),
    }
    save_checkpoint(directory, model_card(directory.name, modules, recipe, training))
    calibrate_checkpoint(directory)
    return directory


def model_card(
    name: str, modules: Mapping[str, ModuleSpec], recipe: PriorRecipe, training: Mapping[str, Any]
) -> ModelCard:
    """The card, before its energies are calibrated. modules: hierarchy, posterior, image and energies."""
    image = ImageSpec(channels=1, height=8, width=8)
    latents = tuple(TensorSpec(name=latent, shape=(size,)) for latent, size in zip(LATENTS, SIZES, strict=True))
    gradients = tuple(TensorSpec(name=f"gradient_{tensor.name}", shape=tensor.shape) for tensor in latents)
    energy, sample = TensorSpec(name="energy"), TensorSpec(name="sample", shape=image.shape)
    steps = recipe.diffusion_steps
    composites = {
        "prior_energy": ("latent-prior-energy", "energies"),
        "layer_energy": ("latent-layer-energy", "energies"),
        "prior_image": ("latent-prior-image", "image"),
        "posterior_means": ("latent-posterior-means", "posterior"),
    }
    return ModelCard(
        name=name,
        family="latent",
        description=f"3-layer hierarchical VAE of 8x8 handwritten digits with a diffusion EBM prior of {steps} steps.",
        image=image,
        labels=LabelSpec(count=CLASSES, null=NULL_LABEL, names=tuple(str(digit) for digit in range(CLASSES))),
        modules={
            **modules,
            **{
                key: composite_module(architecture, {"hierarchy": "hierarchy", part: part}, modules)
                for key, (architecture, part) in composites.items()
            },
        },
        networks={
            "decoder": NetworkSpec(
                module="prior_image", inputs=latents, outputs=(TensorSpec(name="image", shape=image.shape),)
            ),
            "encoder": NetworkSpec(module="posterior_means", inputs=(sample,), outputs=latents),
            "prior_gradient": NetworkSpec(
                module="prior_energy",
                function="energy_gradient",
                gradients=LATENTS,
                inputs=(
                    *latents,
                    TensorSpec(name="time", range=(0.0, steps - 1.0)),
                    TensorSpec(name="label", dtype="int64"),
                ),
                outputs=(energy, *gradients),
            ),
            "layer_energy": NetworkSpec(
                module="layer_energy",
                inputs=(*latents, TensorSpec(name="above", range=(0.0, len(SIZES) - 1.0))),
                outputs=(energy,),
            ),
        },
        sampling=SamplingSpec(
            network="decoder",
            prediction="x0",
            samplers=("latent",),
            default_steps=steps,
            min_steps=steps,
            max_steps=steps,
            parameters={
                "alpha": amplitudes(steps),
                "langevin_steps": (float(recipe.langevin_steps),),
                "step_size": (recipe.step_size,),
            },
        ),
        energy=EnergySpec(network="layer_energy", scales=scales()),
        registers={tensor.name: tensor.shape for tensor in latents},
        training=dict(training),
    )


def scales(repeats: int = 4) -> tuple[ScaleSpec, ...]:
    """Both schemes of section 5.2 for the layers above k = 0, 1, 2. repeats: draws of noise of the diffusion scheme."""
    above = range(len(SIZES))
    return (
        *(
            ScaleSpec(name=f"inference-{k}", time=0.0, method="latent-inference", parameters={"above": float(k)})
            for k in above
        ),
        *(
            ScaleSpec(
                name=f"diffusion-{k}",
                time=0.0,
                method="latent-diffusion",
                parameters={"above": float(k), "repeats": float(repeats)},
            )
            for k in above
        ),
    )
