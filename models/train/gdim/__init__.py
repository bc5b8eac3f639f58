"""Training of `digits-gdim` (t-GDIM) and `digits-gdim-start` (T-GDIM) from `digits-ddpm`, see `trainer`."""

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
from .card import ENERGY_CONFIG, GENERATOR_CONFIG, NAME, START_NAME, model_card
from .trainer import Recipe, Trainer

__all__ = ["NAME", "START_NAME", "Recipe", "train_digits_gdim", "train_digits_gdim_start"]


def train_digits_gdim(output: Path, report: Report, recipe: Recipe | None = None) -> Path:
    """Train `digits-gdim` (t-GDIM) from the `digits-ddpm` below `output`; returns its directory.

    Raises:
        BundleError: there is no usable `digits-ddpm`.
    """
    return _train(output, report, recipe or Recipe(), sees_start=False)


def train_digits_gdim_start(output: Path, report: Report, recipe: Recipe | None = None) -> Path:
    """Train `digits-gdim-start` (T-GDIM), as `train_digits_gdim`."""
    return _train(output, report, recipe or Recipe(), sees_start=True)


def _train(output: Path, report: Report, recipe: Recipe, *, sees_start: bool) -> Path:
    started = time.perf_counter()
    source = output / ddpm.NAME
    base = load_checkpoint(source)
    denoiser = load_modules(source, base.modules)["denoiser"]
    trained = Trainer(load_digits_split().train, denoiser, recipe, sees_start=sees_start).run(report)
    directory = output / (START_NAME if sees_start else NAME)
    modules = {
        "generator": save_module(
            directory, "generator", "gdim-generator", GENERATOR_CONFIG, trained.generator, half=True
        ),
        "energy": save_module(directory, "energy", "gdim-energy", ENERGY_CONFIG, trained.energy, half=True),
    }
    training = {
        "algorithm": "T-GDIM, iDDIM paper eqs. 54-56" if sees_start else "t-GDIM, iDDIM paper eqs. 52, 53",
        "recipe": asdict(recipe),
        "optimiser": "Adam, rates constant and then linear to a tenth over the second half",
        "initialised_from": {"name": base.name, "sha256": base.modules["denoiser"].sha256},
        "final_losses": trained.losses,
        "seconds": round(time.perf_counter() - started, 1),
        **provenance(),
    }
    save_checkpoint(directory, model_card(modules, training, sees_start=sees_start))
    calibrate_checkpoint(directory)
    return directory
