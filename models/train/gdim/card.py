"""What `digits-gdim` and `digits-gdim-start` are: sizes, and their card."""

from __future__ import annotations

from typing import Any

from ...card import (
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
from ...data import CLASSES, NULL_LABEL
from ...schedules import quadratic_grid
from .. import ddpm
from ..ddpm import SCHEDULE

NAME = "digits-gdim"
START_NAME = "digits-gdim-start"
STEPS = 4
LATENT = CLASSES + 32
GENERATOR_CONFIG: dict[str, Any] = {"unet": ddpm.CONFIG, "latent": LATENT, "style": 32}
ENERGY_CONFIG: dict[str, Any] = {"unet": ddpm.CONFIG, "width": 64}


def model_card(modules: dict[str, ModuleSpec], training: dict[str, Any], *, sees_start: bool) -> ModelCard:
    """The card of one of the two, before its energies are calibrated."""
    image = ImageSpec(channels=1, height=8, width=8)
    sample, moment = TensorSpec(name="sample", shape=image.shape), TensorSpec(name="time")
    # Ranges within which the amplitudes of x_t and x_s are those of two different places on a path.
    amplitudes = [TensorSpec(name="signal", range=(0.1, 0.7)), TensorSpec(name="noise", range=(0.7, 1.0))]
    if sees_start:
        amplitudes.append(TensorSpec(name="target_signal", range=(0.8, 1.0)))
        amplitudes.append(TensorSpec(name="target_noise", range=(0.0, 0.3)))
    variant = "T-GDIM, with an energy of (x_s, x_t)" if sees_start else "t-GDIM, with an energy of (x_0, x_t)"
    return ModelCard(
        name=START_NAME if sees_start else NAME,
        family="gdim",
        description=f"Four-step generator of 8x8 handwritten digits and its conditional energy: {variant}.",
        image=image,
        labels=LabelSpec(count=CLASSES, null=NULL_LABEL, names=tuple(str(digit) for digit in range(CLASSES))),
        modules=modules,
        networks={
            "generator": NetworkSpec(
                module="generator",
                inputs=(
                    sample,
                    moment,
                    TensorSpec(name="label", dtype="int64"),
                    TensorSpec(name="latent", shape=(LATENT,)),
                ),
                outputs=(TensorSpec(name="v", shape=image.shape),),
            ),
            "energy": NetworkSpec(
                module="energy",
                inputs=(sample, TensorSpec(name="latent", shape=image.shape), moment, *amplitudes),
                outputs=(TensorSpec(name="energy"),),
            ),
        },
        sampling=SamplingSpec(
            network="generator",
            prediction="v",
            schedule=SCHEDULE,
            samplers=("gdim",),
            default_steps=STEPS,
            min_steps=STEPS,
            max_steps=STEPS,
        ),
        energy=EnergySpec(network="energy", scales=scales()),
        training=training,
    )


def scales() -> tuple[ScaleSpec, ...]:
    """The mean energy over all times of the grid and two draws at each, then each time by itself with four."""
    times = [t - 1 for t in quadratic_grid(STEPS, SCHEDULE.steps)]
    return (
        ScaleSpec(name="mean", time=0.0, method="gdim", parameters={"draws": 2.0, "every_time": 1.0}),
        *(ScaleSpec(name=f"t{t}", time=float(t), method="gdim", parameters={"draws": 4.0}) for t in times),
    )
