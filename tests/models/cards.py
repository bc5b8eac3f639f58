"""Model cards for tests: the shapes of real models, with no files behind them."""

from __future__ import annotations

from typing import Any

from models.card import (
    EnergySpec,
    ImageSpec,
    LabelSpec,
    LangevinSpec,
    ModelCard,
    ModuleSpec,
    NetworkSpec,
    SamplingSpec,
    ScaleSpec,
    TensorSpec,
)

IMAGE = ImageSpec(channels=1, height=8, width=8)
PLANE = ImageSpec(channels=1, height=8, width=8, low=-1e30, high=1e30)
"""Images of any values, for closed forms that know no range."""
MODULE = ModuleSpec(architecture="none", config={}, weights="none.safetensors", sha256="0" * 64, parameters=0)
SAMPLE = TensorSpec(name="sample", shape=IMAGE.shape)
TIME = TensorSpec(name="time")


def denoiser_card(*, image: ImageSpec = IMAGE, **sampling: Any) -> ModelCard:
    """A class-conditional denoiser with every sampler of the ensemble family."""
    spec: dict[str, Any] = {
        "network": "denoiser",
        "samplers": ("ddim", "iddim", "radical", "custom", "ancestral"),
        "default_steps": 8,
    }
    return ModelCard(
        name="denoiser",
        family="ddpm",
        description="test",
        image=image,
        labels=LabelSpec(count=10, null=10),
        modules={"denoiser": MODULE},
        networks={
            "denoiser": NetworkSpec(
                module="denoiser",
                inputs=(SAMPLE, TIME, TensorSpec(name="label", dtype="int64")),
                outputs=(TensorSpec(name="prediction", shape=IMAGE.shape),),
            )
        },
        sampling=SamplingSpec(**(spec | sampling)),
        training={},
    )


def energy_card(*, image: ImageSpec = IMAGE, **langevin: Any) -> ModelCard:
    """An energy with its gradient, and nothing else."""
    energy = TensorSpec(name="energy")
    return ModelCard(
        name="energy",
        family="ebm",
        description="test",
        image=image,
        modules={"energy": MODULE},
        networks={
            "energy": NetworkSpec(module="energy", inputs=(SAMPLE, TIME), outputs=(energy,)),
            "energy_gradient": NetworkSpec(
                module="energy",
                function="energy_gradient",
                inputs=(SAMPLE, TIME),
                outputs=(energy, TensorSpec(name="gradient", shape=IMAGE.shape)),
            ),
        },
        energy=EnergySpec(
            network="energy", gradient_network="energy_gradient", scales=(ScaleSpec(name="t0", time=0.0),)
        ),
        langevin=LangevinSpec(**({"step_size": 0.1} | langevin)),
        training={},
    )


def vdrme_card(*, image: ImageSpec = IMAGE, **sampling: Any) -> ModelCard:
    """A noise-conditioned generator with trained grids."""
    spec: dict[str, Any] = {
        "network": "generator",
        "samplers": ("vdrme",),
        "default_steps": 4,
        "grids": {"4": (999, 562, 249, 62, 0)},
    }
    inputs = (SAMPLE, TIME, TensorSpec(name="target_time"), TensorSpec(name="latent", shape=(16,)))
    return ModelCard(
        name="generator",
        family="vdrme",
        description="test",
        image=image,
        modules={"generator": MODULE},
        networks={
            "generator": NetworkSpec(
                module="generator", inputs=inputs, outputs=(TensorSpec(name="prediction", shape=IMAGE.shape),)
            )
        },
        sampling=SamplingSpec(**(spec | sampling)),
        training={},
    )
