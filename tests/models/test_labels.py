"""Which programs have a use for labels."""

from __future__ import annotations

import pytest

from models.checkpoint import load_checkpoint
from models.samplers import SampleOptions, compile_sample, takes_labels

from ..conftest import ZOO

LABELLED = {
    "digits-ddpm": ({}, True),
    "digits-vdrme": ({}, True),
    "digits-vdrme langevin": ({"sampler": "langevin"}, False),
    "digits-gdim": ({}, True),
    "digits-hat": ({}, False),
    "digits-latent": ({}, True),
    "digits-latent without energies": ({"parameters": (("langevin_steps", (0.0,)),)}, False),
    "digits-latent held": ({"parameters": (("hold", (2.0,)), ("langevin_steps", (0.0,)))}, False),
}


@pytest.mark.parametrize("name", LABELLED)
def test_a_program_takes_labels_where_they_make_a_difference(name):
    """Not where no network of it takes one, nor where what such a network gives is thrown away."""
    options, expected = LABELLED[name]
    card = load_checkpoint(ZOO / name.split()[0])
    assert takes_labels(card, compile_sample(card, SampleOptions(**options))) == expected
