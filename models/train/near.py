"""Training of `digits-0-4-vdrme`: VDRME's energy of the digits 0 to 4 alone, for SPEC 8's near set "0-4 against 5-9".

The recipes are those of `digits-ddpm` and `digits-vdrme`, on half of the classes: a denoiser from nothing, as the
shipped one has seen the others, and Algorithm 1 from it. The energy alone is kept, and calibrated on 0 to 4.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

from ..card import ImageSpec, ModelCard
from ..checkpoint import save_checkpoint, save_module
from ..data import KNOWN_DIGITS, load_digits_split
from . import ddpm, vdrme
from .calibration import calibrate_checkpoint
from .ddpm import Report
from .provenance import provenance

NAME = "digits-0-4-vdrme"


def train_digits_0_4(
    output: Path, report: Report, denoising: ddpm.Recipe | None = None, recipe: vdrme.Recipe | None = None
) -> Path:
    """Train `digits-0-4-vdrme` and write its checkpoint below `output`; returns its directory."""
    denoising, recipe = denoising or ddpm.Recipe(), recipe or vdrme.Recipe()
    started = time.perf_counter()
    split = load_digits_split().select(KNOWN_DIGITS)
    total = denoising.steps + recipe.denoising_steps + recipe.energy_warmup + recipe.iterations
    denoiser, loss = ddpm.train_denoiser(split.train, denoising, lambda done, _, losses: report(done, total, losses))
    trained = vdrme.Trainer(split.train, denoiser, recipe).run(
        lambda done, _, losses: report(denoising.steps + done, total, losses)
    )
    directory = output / NAME
    module = save_module(directory, "energy", "vdrme-energy", vdrme.ENERGY_CONFIG, trained.energy, half=True)
    card = ModelCard(
        name=NAME,
        family="vdrme",
        description="Multiscale energy of the 8x8 handwritten digits 0 to 4; it has never seen 5 to 9.",
        image=ImageSpec(channels=1, height=8, width=8),
        modules={"energy": module},
        networks=vdrme.energy_networks(),
        energy=vdrme.ENERGY,
        langevin=vdrme.LANGEVIN,
        training={
            "algorithm": "as digits-ddpm and digits-vdrme, from nothing, on the digits 0 to 4",
            "digits": list(KNOWN_DIGITS),
            "images": len(split.train),
            "recipe": {"denoiser": asdict(denoising), "vdrme": asdict(recipe)},
            "final_losses": {"denoiser": round(loss, 5), **trained.losses},
            "seconds": round(time.perf_counter() - started, 1),
            **provenance(),
        },
    )
    save_checkpoint(directory, card)
    calibrate_checkpoint(directory, split.calibration.images)
    return directory
