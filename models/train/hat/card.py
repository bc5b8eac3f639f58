"""The card of a Hat Diffusion EBM: its networks, registers and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...card import (
    EnergySpec,
    ImageSpec,
    LangevinSpec,
    ModelCard,
    ModuleSpec,
    NetworkSpec,
    SamplingSpec,
    ScaleSpec,
    TensorSpec,
)
from ...checkpoint import composite_module
from ...networks.hat import SCHEDULE
from ...samplers.langevin import from_epsilon
from .energy import Chain

NAME = "digits-hat"
IMAGE = (1, 8, 8)


def model_card(
    modules: Mapping[str, ModuleSpec], training: Mapping[str, Any], *, latent: int, first: Chain, second: Chain
) -> ModelCard:
    """The card, before its energies are calibrated.

    modules: proposal, denoiser, energy (of stage 2) and residual_energy (of stage 1).
    latent: size of z_1. first, second: the chains that the two stages were trained with, which are the defaults.
    """
    image, sample = TensorSpec(name="image", shape=IMAGE), TensorSpec(name="sample", shape=IMAGE)
    y, z2 = TensorSpec(name="y", shape=IMAGE), TensorSpec(name="z2", shape=IMAGE)
    z1, energy = TensorSpec(name="z1", shape=(latent,)), TensorSpec(name="energy")
    parts = {"proposal": "proposal", "denoiser": "denoiser"}
    composites = {
        "generator": composite_module("hat-generator", parts, modules),
        "composition": composite_module("hat-composition", parts, modules),
        "joint_energy": composite_module("hat-joint-energy", {"energy": "energy", **parts}, modules),
        "transition": composite_module("hat-transition", {"denoiser": "denoiser"}, modules),
    }
    return ModelCard(
        name=NAME,
        family="hat",
        description="Hat Diffusion EBM of 8x8 handwritten digits: a generator, a one-step denoiser, Langevin steps.",
        image=ImageSpec(channels=1, height=8, width=8),
        modules={**modules, **composites},
        networks={
            "generator": NetworkSpec(module="generator", inputs=(z1, z2), outputs=(image,)),
            "compose": NetworkSpec(module="composition", inputs=(y, z1, z2), outputs=(image,)),
            "transition": NetworkSpec(
                module="transition", inputs=(sample, TensorSpec(name="latent", shape=IMAGE)), outputs=(image,)
            ),
            "energy": NetworkSpec(module="energy", inputs=(sample,), outputs=(energy,)),
            "energy_gradient": NetworkSpec(
                module="energy",
                function="energy_gradient",
                inputs=(sample,),
                outputs=(energy, TensorSpec(name="gradient", shape=IMAGE)),
            ),
            "residual_gradient": NetworkSpec(
                module="residual_energy",
                function="energy_gradient",
                inputs=(sample,),
                outputs=(energy, TensorSpec(name="gradient", shape=IMAGE)),
            ),
            "joint_gradient": NetworkSpec(
                module="joint_energy",
                function="energy_gradient",
                gradients=("y", "z1", "z2"),
                inputs=(y, z1, z2),
                outputs=(
                    energy,
                    TensorSpec(name="gradient_y", shape=IMAGE),
                    TensorSpec(name="gradient_z1", shape=(latent,)),
                    TensorSpec(name="gradient_z2", shape=IMAGE),
                    image,
                ),
            ),
        },
        sampling=SamplingSpec(
            network="generator",
            prediction="x0",
            schedule=SCHEDULE,
            samplers=("hat",),
            default_steps=second.steps,
            max_steps=1000,
            parameters={
                "stage": (2.0,),
                "step_size": (from_epsilon(second.epsilon),),
                "latent_step_size": (from_epsilon(second.latent_epsilon),),
                "temperature": (second.temperature,),
                "max_displacement": (second.max_displacement,),
                "prior": (1.0,),
            },
        ),
        energy=EnergySpec(
            network="energy", gradient_network="energy_gradient", scales=(ScaleSpec(name="clean", time=0.0),)
        ),
        langevin=LangevinSpec(
            steps=first.steps,
            step_size=from_epsilon(first.epsilon),
            temperature=first.temperature,
            max_displacement=first.max_displacement,
            box=True,
        ),
        registers={"y": IMAGE, "z1": (latent,), "z2": IMAGE},
        refiners=("transition",),
        training=dict(training),
    )
