"""The presets: sizes from the papers' tables, and from the networks they cite where they give none (README.md here)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..card import (
    EnergySpec,
    ImageSpec,
    LabelSpec,
    LangevinSpec,
    ModelCard,
    ModuleSpec,
    NetworkSpec,
    SamplingSpec,
    ScaleSpec,
    ScheduleSpec,
    TensorSpec,
)
from ..samplers.langevin import from_epsilon
from ..schedules import alpha_bar, quadratic_grid
from .preset import Part, Preset

IDDIM, VDRME, HAT = "iDDIM / GDIM", "VDRME", "Hat Diffusion EBM"
LATENT, DDPM = "Latent hierarchical EBM", "iDDIM / GDIM (DDPM's U-Net)"
ENERGY, TIME = TensorSpec(name="energy"), TensorSpec(name="time")
LINEAR = ScheduleSpec()


def unet(side: int, channels: tuple[int, ...], attention: int, layers: int = 2) -> dict[str, Any]:
    """Configuration of a U-Net like DDPM's, with self-attention at the side `attention` (Ho et al. 2020)."""
    attends = [side >> level == attention for level in range(len(channels))]
    return {
        "sample_size": side,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": layers,
        "block_out_channels": list(channels),
        "down_block_types": ["AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "up_block_types": ["AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        "attention_head_dim": None,  # one head
        "norm_num_groups": 32,
        "norm_eps": 1e-6,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
    }


def sample_of(image: ImageSpec, name: str = "sample") -> TensorSpec:
    return TensorSpec(name=name, shape=image.shape)


def ddpm_card(preset: Preset, modules: dict[str, ModuleSpec], training: dict[str, Any]) -> ModelCard:
    """A denoiser for the ensemble samplers."""
    sample = sample_of(preset.image)
    network = NetworkSpec(module="denoiser", inputs=(sample, TIME), outputs=(sample_of(preset.image, "eps"),))
    return ModelCard(
        name=preset.name,
        family="ddpm",
        description="DDPM's U-Net for CIFAR-10, random weights.",
        image=preset.image,
        modules=modules,
        networks={"denoiser": network},
        sampling=SamplingSpec(
            network="denoiser", samplers=("iddim", "ddim", "radical", "custom", "ancestral"), default_steps=10
        ),
        training=training,
    )


def gdim_card(preset: Preset, modules: dict[str, ModuleSpec], training: dict[str, Any]) -> ModelCard:
    """A generator with a latent, and the conditional energy of a clean image at noise drawn for it."""
    sample, noise = sample_of(preset.image), sample_of(preset.image, "latent")
    inputs = (
        sample,
        noise,
        TIME,
        TensorSpec(name="signal", range=(0.0, 1.0)),
        TensorSpec(name="noise", range=(0.0, 1.0)),
    )
    steps = 4
    return ModelCard(
        name=preset.name,
        family="gdim",
        description=f"t-GDIM at the paper's size for {preset.image.height}x{preset.image.width}, random weights.",
        image=preset.image,
        modules=modules,
        networks={
            "generator": NetworkSpec(
                module="generator",
                inputs=(sample, TIME, TensorSpec(name="latent", shape=(preset.parts["generator"].config["latent"],))),
                outputs=(sample_of(preset.image, "clean"),),
            ),
            "energy": NetworkSpec(module="energy", inputs=inputs, outputs=(ENERGY,)),
        },
        sampling=SamplingSpec(
            network="generator", prediction="x0", samplers=("gdim",), default_steps=steps, min_steps=1, max_steps=20
        ),
        energy=EnergySpec(
            network="energy",
            scales=tuple(
                ScaleSpec(name=f"t{t}", time=float(t - 1), method="gdim") for t in quadratic_grid(steps, LINEAR.steps)
            ),
        ),
        training=training,
    )


def hat_card(preset: Preset, modules: dict[str, ModuleSpec], training: dict[str, Any]) -> ModelCard:
    """G(z), the energy of an image, and the energy of latents and residual with its three gradients."""
    image = preset.image
    sample, moved = sample_of(image), sample_of(image, "gradient")
    joint = (
        sample_of(image, "y"),
        TensorSpec(name="z1", shape=(preset.parts["proposal"].config["latent"],)),
        sample_of(image, "z2"),
    )
    gradients = tuple(TensorSpec(name=f"gradient_{tensor.name}", shape=tensor.shape) for tensor in joint)
    result = sample_of(image, "image")
    return ModelCard(
        name=preset.name,
        family="hat",
        description=f"Hat Diffusion EBM for {image.height}x{image.width}, random weights.",
        image=image,
        modules=modules,
        networks={
            "generator": NetworkSpec(module="generator", inputs=joint[1:], outputs=(result,)),
            "energy": NetworkSpec(module="energy", inputs=(sample,), outputs=(ENERGY,)),
            "energy_gradient": NetworkSpec(
                module="energy", function="energy_gradient", inputs=(sample,), outputs=(ENERGY, moved)
            ),
            "residual_gradient": NetworkSpec(
                module="residual_energy", function="energy_gradient", inputs=(sample,), outputs=(ENERGY, moved)
            ),
            "joint_gradient": NetworkSpec(
                module="joint_energy",
                function="energy_gradient",
                gradients=("y", "z1", "z2"),
                inputs=joint,
                outputs=(ENERGY, *gradients, result),
            ),
            "compose": NetworkSpec(module="composition", inputs=joint, outputs=(result,)),
            "transition": NetworkSpec(
                module="transition", inputs=(sample, sample_of(image, "latent")), outputs=(result,)
            ),
        },
        sampling=SamplingSpec(
            network="generator",
            prediction="x0",
            schedule=ScheduleSpec(kind="cosine"),
            samplers=("hat",),
            default_steps=50,
            max_steps=500,
            # Public values of Hat EBM's CIFAR-10 model (SPEC 4).
            parameters={
                "stage": (1.0,),
                "step_size": (from_epsilon(5e-4),),
                "latent_step_size": (from_epsilon(5e-3),),
                "temperature": (1e-8,),
                "max_displacement": (2.5,),
                "prior": (1.0,),
            },
        ),
        energy=EnergySpec(
            network="energy", gradient_network="energy_gradient", scales=(ScaleSpec(name="clean", time=0.0),)
        ),
        langevin=LangevinSpec(steps=50, step_size=from_epsilon(5e-4), temperature=1e-8, max_displacement=2.5),
        registers={tensor.name: tensor.shape for tensor in joint},
        refiners=("transition",),
        training=training,
    )


def vdrme_latent_card(preset: Preset, modules: dict[str, ModuleSpec], training: dict[str, Any]) -> ModelCard:
    """Few-step generator and multiscale energy on latents of ImageNet-256."""
    sample, label = sample_of(preset.image), TensorSpec(name="label", dtype="int64")
    classes = preset.parts["generator"].config["labels"]
    times = (*(t - 1 for t in reversed(quadratic_grid(4, LINEAR.steps))), 0)
    table = alpha_bar(LINEAR)
    noisy = tuple(
        ScaleSpec(
            name=f"t{t}", time=float(t), signal=float(table[t + 1] ** 0.5), noise=float((1.0 - table[t + 1]) ** 0.5)
        )
        for t in sorted(times[1:-1])
    )
    return ModelCard(
        name=preset.name,
        family="vdrme",
        description="VDRME on 4x32x32 latents of ImageNet-256: DiT-XL/2 as generator and as energy, random weights.",
        image=preset.image,
        labels=LabelSpec(count=classes, null=classes),
        modules=modules,
        networks={
            "generator": NetworkSpec(
                module="generator",
                inputs=(sample, TIME, label, sample_of(preset.image, "latent")),
                outputs=(sample_of(preset.image, "eps"),),
            ),
            "energy": NetworkSpec(module="energy", inputs=(sample, TIME, label), outputs=(ENERGY,)),
        },
        sampling=SamplingSpec(
            network="generator", samplers=("vdrme",), default_steps=4, grids={"4": times}, clip=False
        ),
        energy=EnergySpec(network="energy", scales=(ScaleSpec(name="t0", time=0.0), *noisy)),
        training=training,
    )


def latent_card(preset: Preset, modules: dict[str, ModuleSpec], training: dict[str, Any]) -> ModelCard:
    """The image of u_1..u_30, and the energy of their prior with all its gradients."""
    config = preset.parts["prior"].config
    shape = (config["latent"], config["side"], config["side"])
    latents = tuple(TensorSpec(name=f"u{i + 1}", shape=shape) for i in range(config["layers"]))
    gradients = tuple(TensorSpec(name=f"gradient_{tensor.name}", shape=tensor.shape) for tensor in latents)
    return ModelCard(
        name=preset.name,
        family="latent",
        description=f"Energy-based prior over {config['layers']} layers of latents as in NVAE, random weights.",
        image=preset.image,
        modules=modules,
        networks={
            "decoder": NetworkSpec(module="image", inputs=latents, outputs=(sample_of(preset.image, "image"),)),
            "prior_gradient": NetworkSpec(
                module="prior_energy",
                function="energy_gradient",
                gradients=tuple(tensor.name for tensor in latents),
                inputs=(*latents, TensorSpec(name="time", range=(0.0, 2.0))),
                outputs=(ENERGY, *gradients),
            ),
        },
        sampling=SamplingSpec(
            network="decoder",
            prediction="x0",
            samplers=("latent",),
            default_steps=3,
            min_steps=3,
            max_steps=3,
            # The paper's T = 3 and K = 50; the signal's amplitude at u_3 is .1, falling by the same factor each time.
            parameters={"alpha": (0.1 ** (1 / 3),) * 3, "langevin_steps": (50.0,), "step_size": (0.1,)},
        ),
        registers={tensor.name: tensor.shape for tensor in latents},
        training=training,
    )


def gdim(
    name: str, side: int, width: int, multipliers: tuple[int, ...], mapping: int, blocks: tuple[tuple[int, bool], ...]
) -> Preset:
    """t-GDIM: a column of table 6 (generator) and of table 7 (energy)."""
    generator = {"size": side, "width": width, "multipliers": list(multipliers), "latent": 100, "mapping": mapping}
    return Preset(
        name=name,
        paper=IDDIM,
        image=ImageSpec(channels=3, height=side, width=side),
        parts={
            "generator": Part("ncsnpp-generator", generator),
            "energy": Part("ncsnpp-energy", {"blocks": [list(block) for block in blocks]}),
        },
        card=gdim_card,
    )


def hat(
    name: str,
    side: int,
    generator: tuple[int, ...],
    energy: tuple[int, ...],
    halvings: int,
    denoiser: tuple[int, ...],
    truncation: int,
) -> Preset:
    """Hat Diffusion EBM: channels of G_1, of H (one for each stage) and of D's U-Net, and T'."""
    config = {"unet": unet(side, denoiser, attention=16), "truncation": truncation}
    return Preset(
        name=name,
        paper=HAT,
        image=ImageSpec(channels=3, height=side, width=side),
        parts={
            "proposal": Part("hat-large-proposal", {"widths": list(generator), "latent": 128}),
            "denoiser": Part("hat-large-denoiser", config),
            "residual_energy": Part("hat-large-energy", {"widths": list(energy), "halvings": halvings}),
            "energy": Part("hat-large-energy", {"widths": list(energy), "halvings": halvings}),
        },
        composites={
            "generator": ("hat-generator", {"proposal": "proposal", "denoiser": "denoiser"}),
            "composition": ("hat-composition", {"proposal": "proposal", "denoiser": "denoiser"}),
            "joint_energy": (
                "hat-joint-energy",
                {"energy": "energy", "proposal": "proposal", "denoiser": "denoiser"},
            ),
            "transition": ("hat-transition", {"denoiser": "denoiser"}),
        },
        card=hat_card,
    )


CIFAR = ImageSpec(channels=3, height=32, width=32)
DIT = {"channels": 4, "size": 32, "patch": 2, "heads": 16, "head": 72, "layers": 28, "labels": 1000}
PRIOR = {"layers": 30, "latent": 20, "width": 256, "side": 16}

_ALL = (
    Preset(
        name="ddpm-cifar10",
        paper=DDPM,
        image=CIFAR,
        parts={"denoiser": Part("unet2d", unet(32, (128, 256, 256, 256), 16), "35.7M (DDPM)")},
        card=ddpm_card,
    ),
    gdim("tgdim-cifar10", 32, 128, (1, 2, 2, 2), 4, ((128, False), (256, True), (512, True), (512, True))),
    gdim("tgdim-celeba64", 64, 64, (1, 2, 3, 4), 3, ((128, False), (256, True), (512, True), (512, True), (512, True))),
    gdim("tgdim-celeba128", 128, 64, (1, 1, 2, 3, 4), 3, ((128, True), (256, True), *[(512, True)] * 3)),
    gdim("tgdim-celebahq256", 256, 64, (1, 1, 2, 2, 4, 4), 3, ((128, True), (256, True), *[(512, True)] * 4)),
    hat("hat-cifar10", 32, (256,) * 4, (256,) * 4, 2, (128, 256, 256, 256), 256),
    hat("hat-celeba64", 64, (1024, 512, 256, 128, 64), (64, 128, 256, 512, 1024), 5, (128, 256, 384, 512), 512),
    hat(
        "hat-imagenet128",
        128,
        (1024, 1024, 512, 256, 128, 64),
        (64, 128, 256, 512, 1024, 1024),
        5,
        (128, 128, 256, 384, 512),
        512,
    ),
    Preset(
        name="vdrme-imagenet256",
        paper=VDRME,
        # Latents of Stable Diffusion's autoencoder, scaled to unit variance; what lies beyond 5 of them is refused.
        image=ImageSpec(channels=4, height=32, width=32, low=-5.0, high=5.0),
        parts={
            "generator": Part("dit-generator", DIT, "675M (DiT-XL/2)"),
            "energy": Part("dit-energy", DIT, "675M (DiT-XL/2)"),
        },
        card=vdrme_latent_card,
    ),
    Preset(
        name="latent-nvae30",
        paper=LATENT,
        image=CIFAR,
        parts={
            "prior": Part("nvae-prior", PRIOR),
            "energies": Part("nvae-energies", {"layers": PRIOR["layers"], "latent": PRIOR["latent"]}),
            "decoder": Part("nvae-decoder", {"width": PRIOR["width"]}),
        },
        composites={
            "prior_energy": ("nvae-prior-energy", {"prior": "prior", "energies": "energies"}),
            "image": ("nvae-image", {"prior": "prior", "decoder": "decoder"}),
        },
        card=latent_card,
    ),
)
PRESETS: Mapping[str, Preset] = {preset.name: preset for preset in _ALL}
"""By name."""
