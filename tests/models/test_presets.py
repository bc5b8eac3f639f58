"""Presets at the papers' sizes: counted without memory, and each family's small twin forwards, row by row."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from models.card import ImageSpec, ModuleSpec
from models.checkpoint import composite_module, load_checkpoint, load_modules
from models.networks import ARCHITECTURES, build
from models.networks.classifier import one_thread
from models.presets.__main__ import main
from models.presets.catalogue import PRESETS, ddpm_card, gdim_card, hat_card, latent_card, unet, vdrme_latent_card
from models.presets.preset import NOT_STATED, Part, Preset, fill_zeros, parameter_counts, write
from models.run import networks_of, run
from models.samplers import SampleOptions, compile_sample, compile_score

SMALL_UNET = {**unet(16, (32, 32), 8), "layers_per_block": 1}
SMALL_DIT = {"channels": 4, "size": 8, "patch": 2, "heads": 2, "head": 8, "layers": 2, "labels": 10}
IMAGES = {"sample": (3, 16, 16), "latent": (3, 16, 16)}
LATENTS = {f"u{i + 1}": (2, 8, 8) for i in range(3)}
PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "proposal": ("hat-large-proposal", {"widths": [16, 8, 8], "latent": 10}),
    "denoiser": ("hat-large-denoiser", {"unet": SMALL_UNET, "truncation": 256}),
    "residual_energy": ("hat-large-energy", {"widths": [8, 8], "halvings": 1}),
    "energy": ("hat-large-energy", {"widths": [8, 8], "halvings": 1}),
    "prior": ("nvae-prior", {"layers": 3, "latent": 2, "width": 16, "side": 8, "cells": 1}),
    "energies": ("nvae-energies", {"layers": 3, "latent": 2, "width": 8}),
    "decoder": ("nvae-decoder", {"width": 16, "cells": 1}),
}
SMALL: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]], tuple[int, ...]]] = {
    "unet2d": (SMALL_UNET, {"sample": (3, 16, 16), "time": ()}, (3, 16, 16)),
    "ncsnpp-generator": (
        {"size": 16, "width": 8, "multipliers": [1, 2], "attention": 8, "latent": 10, "style": 12},
        {"sample": (3, 16, 16), "time": (), "latent": (10,)},
        (3, 16, 16),
    ),
    "ncsnpp-energy": (
        {"blocks": [[8, False], [16, True]], "width": 8, "embedding": 16},
        {**IMAGES, "time": (), "signal": (), "noise": ()},
        (),
    ),
    "hat-large-proposal": ({"widths": [16, 8, 8], "latent": 10}, {"z1": (10,)}, (3, 16, 16)),
    "hat-large-energy": ({"widths": [8, 8], "halvings": 1}, {"sample": (3, 16, 16)}, ()),
    "hat-large-denoiser": ({"unet": SMALL_UNET, "truncation": 256}, {"sample": (3, 16, 16)}, (3, 16, 16)),
    "dit-generator": (SMALL_DIT, {"sample": (4, 8, 8), "time": (), "label": (), "latent": (4, 8, 8)}, (4, 8, 8)),
    "dit-energy": (SMALL_DIT, {"sample": (4, 8, 8), "time": (), "label": ()}, ()),
    "nvae-image": ({}, LATENTS, (3, 16, 16)),
    "nvae-prior-energy": ({}, {**LATENTS, "time": ()}, ()),
}
"""Small twin of each architecture: its configuration, inputs of one row, output of one row."""
COMPOSED = {"nvae-image": ("prior", "decoder"), "nvae-prior-energy": ("prior", "energies")}


@pytest.fixture(scope="module", autouse=True)
def single_thread():
    """Small networks on busy cores: threads would wait for each other longer than they work."""
    with one_thread():
        yield


def small_network(architecture: str) -> nn.Module:
    """Built, with its zeros filled, in eval mode."""
    torch.manual_seed(0)
    parts = {name: build(*PARTS[name]) for name in COMPOSED.get(architecture, ())}
    network = build(architecture, SMALL[architecture][0], parts)
    fill_zeros(network)
    return network.eval().requires_grad_(False)


def random_inputs(shapes: dict[str, tuple[int, ...]], rows: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    inputs = {name: torch.randn(rows, *shape, generator=random) for name, shape in shapes.items()}
    if "time" in inputs:
        inputs["time"] = torch.linspace(10.0, 900.0, rows)
    if "label" in inputs:
        inputs["label"] = torch.arange(rows)
    return inputs


@pytest.mark.parametrize("name", ["ddpm-cifar10", "vdrme-imagenet256"])
def test_parameters_are_as_many_as_published(name):
    """Within 1% of the numbers that their papers state: 35.7M and 675M."""
    preset = PRESETS[name]
    for part, count in parameter_counts(preset).items():
        stated = float(preset.parts[part].stated.split("M")[0])
        assert count / 1e6 == pytest.approx(stated, rel=0.01)


def full_card(name):
    """The card of a preset without its weights."""
    preset = PRESETS[name]
    modules = {
        part: ModuleSpec(
            architecture=spec.architecture,
            config=spec.config,
            weights=f"{part}.safetensors",
            sha256="0" * 64,
            parameters=1,
        )
        for part, spec in preset.parts.items()
    }
    for composite, (architecture, parts) in preset.composites.items():
        modules[composite] = composite_module(architecture, parts, modules)
    return preset.card(preset, modules, {})


@pytest.mark.parametrize("name", PRESETS)
def test_cards_of_all_presets_are_valid_and_name_known_architectures(name):
    card = full_card(name)
    assert {module.architecture for module in card.modules.values()} <= ARCHITECTURES.keys()
    assert card.image == PRESETS[name].image
    assert compile_sample(card, SampleOptions()).lines


def test_larger_images_have_more_scales_of_the_generator_and_more_blocks_of_the_energy():
    """Tables 6 and 7, read as columns of growing resolution."""
    gdims = [PRESETS[name] for name in ("tgdim-cifar10", "tgdim-celeba64", "tgdim-celeba128", "tgdim-celebahq256")]
    for smaller, larger in pairwise(gdims):
        assert larger.image.height == 2 * smaller.image.height
        halvings = [sum(down for _, down in preset.parts["energy"].config["blocks"]) for preset in (smaller, larger)]
        assert halvings[1] == halvings[0] + 1


@pytest.mark.parametrize("architecture", SMALL)
def test_forward_gives_the_shape_and_depends_on_every_input(architecture):
    _, shapes, result = SMALL[architecture]
    network = small_network(architecture)
    inputs = random_inputs(shapes, rows=3)
    output = network(**inputs)
    assert output.shape == (3, *result)
    assert torch.isfinite(output).all()
    for name, values in inputs.items():
        changed = values.roll(1, 0) if name == "label" else values + 1.0
        assert not torch.allclose(network(**{**inputs, name: changed}), output, rtol=1e-6, atol=1e-9), name


@pytest.mark.parametrize("architecture", SMALL)
def test_rows_are_independent(architecture):
    """A row gives the same alone and in company; so do all groups of rows of an energy with a minibatch-std layer."""
    _, shapes, _ = SMALL[architecture]
    network = small_network(architecture)
    inputs = random_inputs(shapes, rows=4)
    together = network(**inputs)
    alone = torch.cat([network(**{name: values[i : i + 1] for name, values in inputs.items()}) for i in range(4)])
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_minibatch_std_joins_rows_in_training_and_is_its_running_mean_at_inference():
    energy = small_network("ncsnpp-energy").train()
    inputs = random_inputs(SMALL["ncsnpp-energy"][1], rows=8)
    first = energy(**inputs)
    others = {name: torch.cat([values[:1], values[1:].flip(0) * 2.0]) for name, values in inputs.items()}
    assert not torch.allclose(energy(**others)[0], first[0])
    assert float(energy.deviation) > 0.0
    scored = energy.eval()(**inputs)
    energy.deviation.zero_()
    assert not torch.allclose(energy(**inputs), scored)
    with pytest.raises(ValueError, match="multiples of 4 rows, got 6"):
        energy.train()(**random_inputs(SMALL["ncsnpp-energy"][1], rows=6))


def test_the_dit_is_diffusers_own_but_for_the_shared_embedding():
    """With the same weights, every block's embedding being the common one, both give the same."""
    from diffusers import DiTTransformer2DModel

    network = small_network("dit-generator")
    nn.init.zeros_(network.noise_out.weight)
    nn.init.zeros_(network.noise_out.bias)
    reference = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        num_embeds_ada_norm=10,
    ).eval()  # fmt: skip
    weights = {}
    for key, value in network.state_dict().items():
        if key.startswith("head."):
            weights[key.replace("head.", "proj_out_2.")] = value
        elif key.startswith("backbone.modulation_out."):
            weights[key.replace("backbone.modulation_out.", "proj_out_1.")] = value
        elif key.startswith("backbone.embedding."):
            for block in range(2):
                weights[key.replace("backbone.embedding.", f"transformer_blocks.{block}.norm1.emb.")] = value
        elif key.startswith("backbone."):
            renamed = key.removeprefix("backbone.").replace("patches.", "pos_embed.")
            weights[renamed.replace("blocks.", "transformer_blocks.")] = value
    reference.load_state_dict(weights)
    inputs = random_inputs(SMALL["dit-generator"][1], rows=3)
    (expected,) = reference(inputs["sample"], inputs["time"], inputs["label"], return_dict=False)
    assert torch.allclose(network(**inputs), expected[:, :4], atol=1e-5)


def test_the_prior_is_the_identity_at_the_top_and_shifts_each_lower_layer_by_what_is_above():
    prior = small_network("nvae-prior-energy").prior
    latents = [random_inputs({name: (2, 8, 8)}, rows=2)[name] for name in LATENTS]
    z, _ = prior(latents)
    assert torch.equal(z[2], latents[2])
    lower, _ = prior([latents[0] + 1.0, *latents[1:]])
    assert not torch.allclose(lower[0], z[0])
    assert torch.equal(lower[1], z[1])  # a layer does not depend on those below it
    scale = lower[0] - z[0]  # sigma_1
    assert (scale > 0.0).all()


def small_preset(name: str, parts: dict[str, Part], card: Any, composites: Any = None) -> Preset:
    image = ImageSpec(channels=3, height=16, width=16)
    return Preset(name=name, paper="test", image=image, parts=parts, card=card, composites=composites or {})


def test_a_checkpoint_is_written_seeded_and_loads(tmp_path):
    parts = {"denoiser": Part("unet2d", SMALL_UNET)}
    preset = small_preset("small", parts, ddpm_card)
    card = load_checkpoint(write(preset, tmp_path / "a"))
    assert card.modules["denoiser"].parameters == parameter_counts(preset)["denoiser"]
    again = load_checkpoint(write(preset, tmp_path / "b"))
    other = load_checkpoint(write(preset, tmp_path / "c", seed=1))
    assert again.modules["denoiser"].sha256 == card.modules["denoiser"].sha256
    assert other.modules["denoiser"].sha256 != card.modules["denoiser"].sha256
    module = load_modules(tmp_path / "a" / "small", card.modules)["denoiser"]
    assert module(**random_inputs({"sample": (3, 16, 16), "time": ()}, rows=2)).shape == (2, 3, 16, 16)


SMALL_PRESETS = {
    "ddpm-cifar10": small_preset("small", {"denoiser": Part("unet2d", SMALL_UNET)}, ddpm_card),
    "tgdim-cifar10": small_preset(
        "small",
        {name: Part(f"ncsnpp-{name}", SMALL[f"ncsnpp-{name}"][0]) for name in ("generator", "energy")},
        gdim_card,
    ),
    "hat-cifar10": small_preset(
        "small",
        {name: Part(*PARTS[name]) for name in ("proposal", "denoiser", "residual_energy", "energy")},
        hat_card,
        PRESETS["hat-cifar10"].composites,
    ),
    "vdrme-imagenet256": replace(
        small_preset(
            "small", {name: Part(f"dit-{name}", SMALL_DIT) for name in ("generator", "energy")}, vdrme_latent_card
        ),
        image=ImageSpec(channels=4, height=8, width=8, low=-5.0, high=5.0),
    ),
    "latent-nvae30": small_preset(
        "small",
        {name: Part(*PARTS[name]) for name in ("prior", "energies", "decoder")},
        latent_card,
        PRESETS["latent-nvae30"].composites,
    ),
}
"""Small twin of one preset of each family, with its card."""


@pytest.mark.parametrize("name", SMALL_PRESETS)
def test_a_written_preset_runs_all_its_networks_and_draws_and_scores(name, tmp_path):
    """Inputs and outputs are those that its card names, and the offline loop runs its default sampler and scales."""
    directory = write(SMALL_PRESETS[name], tmp_path)
    card = load_checkpoint(directory)
    assert card.networks.keys() == full_card(name).networks.keys()
    networks = networks_of(card, load_modules(directory, card.modules))
    for network, spec in card.networks.items():
        inputs = random_inputs({tensor.name: tensor.shape for tensor in spec.inputs}, rows=2)
        outputs = networks[network](**inputs)
        assert [tuple(output.shape[1:]) for output in outputs] == [tensor.shape for tensor in spec.outputs], network
    shorter = {"latent": (("langevin_steps", (2.0,)),)}.get(card.family, ())
    steps = 2 if card.family in ("ddpm", "gdim", "hat") else None
    program = compile_sample(card, SampleOptions(steps=steps, parameters=shorter))
    samples = run(program, card, networks, seed=0, count=2).state
    assert samples.shape == (2, *card.image.shape)
    assert torch.isfinite(samples).all()
    assert not torch.allclose(samples[0], samples[1])
    for scale in card.energy.scales if card.energy is not None else ():
        scored = run(
            compile_score(card, scale), card, networks, seed=0, count=2, images=samples.clamp(-1.0, 1.0)
        ).energy
        assert scored is not None
        assert scored.shape == (2,)


def test_the_command_lists_every_part_of_every_preset_with_what_the_papers_state(capsys, monkeypatch):
    """Counted on the meta device, where even 1.35 billion parameters take no memory."""
    monkeypatch.setenv("COLUMNS", "160")
    main([])
    listed = capsys.readouterr().out
    assert len(listed.splitlines()) == 1 + sum(len(preset.parts) for preset in PRESETS.values())
    assert all(name in listed for name in PRESETS)
    assert "35.75M" in listed
    assert NOT_STATED in listed


def test_the_command_needs_an_output_to_write_to(capsys):
    with pytest.raises(SystemExit):
        main(["ddpm-cifar10"])
    assert "--output" in capsys.readouterr().err
