"""What `digits-vdrme` is: sizes and its card."""

from __future__ import annotations

from typing import Any

from ...card import (
    EnergySpec,
    ImageSpec,
    LabelSpec,
    LangevinSpec,
    ModelCard,
    NetworkSpec,
    SamplingSpec,
    ScaleSpec,
    TensorSpec,
)
from ...data import CLASSES, NULL_LABEL
from ...schedules import alpha_bar
from .. import ddpm
from ..ddpm import SCHEDULE
from .grids import GRIDS, STEPS

NAME = "digits-vdrme"
UNLABELLED = {key: value for key, value in ddpm.CONFIG.items() if key != "num_class_embeds"}
GENERATOR_CONFIG: dict[str, Any] = {
    "unet": UNLABELLED,
    "labels": CLASSES + 1,
    "noise_width": 16,
}
ENERGY_CONFIG: dict[str, Any] = {"unet": UNLABELLED, "width": 128}


def model_card(modules: dict[str, Any], training: dict[str, Any]) -> ModelCard:
    """The card of `digits-vdrme`, before its energies are calibrated."""
    sample = TensorSpec(name="sample", shape=(1, 8, 8))
    label = TensorSpec(name="label", dtype="int64")
    latent = TensorSpec(name="latent", shape=(1, 8, 8))
    moment = TensorSpec(name="time")
    return ModelCard(
        name=NAME,
        family="vdrme",
        description="Few-step generator and multiscale energy of 8x8 handwritten digits, for 4, 6 and 8 steps.",
        image=ImageSpec(channels=1, height=8, width=8),
        labels=LabelSpec(count=CLASSES, null=NULL_LABEL, names=tuple(str(digit) for digit in range(CLASSES))),
        modules=modules,
        networks={
            "generator": NetworkSpec(
                module="generator",
                inputs=(sample, moment, TensorSpec(name="target_time"), label, latent),
                outputs=(TensorSpec(name="v", shape=(1, 8, 8)),),
            ),
            **energy_networks(),
        },
        sampling=SamplingSpec(
            network="generator",
            prediction="v",
            schedule=SCHEDULE,
            samplers=("vdrme",),
            default_steps=4,
            min_steps=min(STEPS),
            max_steps=max(STEPS),
            grids={str(steps): times for steps, times in GRIDS.items()},
            clean_end=True,
            clip=True,
        ),
        energy=ENERGY,
        langevin=LANGEVIN,
        training=training,
    )


def energy_networks() -> dict[str, NetworkSpec]:
    """What is run of the module `energy`."""
    inputs = TensorSpec(name="sample", shape=(1, 8, 8)), TensorSpec(name="time")
    energy, gradient = TensorSpec(name="energy"), TensorSpec(name="gradient", shape=(1, 8, 8))
    return {
        "energy": NetworkSpec(module="energy", inputs=inputs, outputs=(energy,)),
        "energy-gradient": NetworkSpec(
            module="energy", function="energy_gradient", inputs=inputs, outputs=(energy, gradient)
        ),
    }


def scales() -> tuple[ScaleSpec, ...]:
    """Every noise scale that the energy was trained at, the clean one first."""
    table = alpha_bar(SCHEDULE)
    noisy = sorted({time for times in GRIDS.values() for time in times[1:-1]})
    amplitudes = {time: (float(table[time + 1] ** 0.5), float((1.0 - table[time + 1]) ** 0.5)) for time in noisy}
    return (
        ScaleSpec(name="t0", time=0.0),
        *(
            ScaleSpec(name=f"t{time}", time=float(time), signal=signal, noise=noise)
            for time, (signal, noise) in amplitudes.items()
        ),
    )


ENERGY = EnergySpec(network="energy", gradient_network="energy-gradient", scale=64.0, scales=scales())
"""How images are scored, before calibration."""

# Short chains from noise lower the energy without making digits of it: the energy was trained beside a generator,
# near the data, and not as the target of a chain. Offered for what it is.
LANGEVIN = LangevinSpec(steps=50, step_size=1e-4, box=True)
