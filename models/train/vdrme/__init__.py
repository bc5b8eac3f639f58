"""Training of `digits-vdrme` from `digits-ddpm`, see `trainer`."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

from ...checkpoint import load_checkpoint, load_modules, save_checkpoint, save_module
from ...data import load_digits_split
from .. import ddpm
from ..calibration import calibrate_checkpoint
from ..ddpm import Report
from ..provenance import provenance
from .card import ENERGY, ENERGY_CONFIG, GENERATOR_CONFIG, LANGEVIN, NAME, energy_networks, model_card
from .trainer import Recipe, Trainer

__all__ = ["ENERGY", "ENERGY_CONFIG", "LANGEVIN", "NAME", "Recipe", "Trainer", "energy_networks", "train_digits_vdrme"]


def train_digits_vdrme(output: Path, report: Report, recipe: Recipe | None = None) -> Path:
    """Train `digits-vdrme` from the `digits-ddpm` below `output` and write it beside it; returns its directory.

    Raises:
        BundleError: there is no usable `digits-ddpm`.
    """
    recipe = recipe or Recipe()
    started = time.perf_counter()
    source = output / ddpm.NAME
    base = load_checkpoint(source)
    denoiser = load_modules(source, base.modules)["denoiser"]
    trained = Trainer(load_digits_split().train, denoiser, recipe).run(report)
    directory = output / NAME
    modules = {
        "generator": save_module(directory, "generator", "vdrme-generator", GENERATOR_CONFIG, trained.generator),
        "energy": save_module(directory, "energy", "vdrme-energy", ENERGY_CONFIG, trained.energy),
    }
    training = {
        "algorithm": "VDRME Algorithm 1, eq. 14, 15, 18 (with the quadratic), 19; Markov coupling; abar = 1 at t_0",
        "recipe": asdict(recipe),
        "optimiser": "Adam, rates constant and then linear to a tenth over the last third",
        "initialised_from": {"name": base.name, "sha256": base.modules["denoiser"].sha256},
        "final_losses": trained.losses,
        "seconds": round(time.perf_counter() - started, 1),
        **provenance(),
    }
    save_checkpoint(directory, model_card(modules, training))
    calibrate_checkpoint(directory)
    return directory
