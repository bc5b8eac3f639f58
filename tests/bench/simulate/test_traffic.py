"""The calls of a mix are what the real server makes of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.load.plan import DEFAULT_MIX
from bench.mix import MixError, parse_mix
from bench.simulate.costs import CostError, Costs, Group, HostCost, StepCost
from bench.simulate.models import ModelsError, read_cards
from bench.simulate.traffic import CompiledCall, compile_call, compile_calls
from models.card import ModelCard
from models.machine import ROOT
from models.samplers import available_samplers
from server.api.validate import sample_plan, score_plan
from server.client.messages import sample_request, score_request
from server.programs import ProgramCache

CARDS = read_cards(ROOT / "models" / "zoo")
KINDS = (
    "ddim:1", "ddim:8:guidance=1", "iddim:4:m=0.2/0.4/0.6/0.8", "iddim:4:m=0.6:form=accumulator:count=3:labels=1/2/3",
    "vdrme:4:model=digits-vdrme", "gdim:4", "hat:1:count=2", "latent:3", "langevin:5:model=digits-vdrme:step_size=0.01",
    "score:model=digits-vdrme:images=3", "score:model=digits-vdrme:scales=all:images=2", "score:model=digits-latent",
)  # fmt: skip


def compiled(kind: str, cards: Any = CARDS) -> CompiledCall:
    (call,) = (compile_call(known, cards, None) for known in _resolved(kind))
    return call


def _resolved(kind: str) -> Any:
    from bench.mix import resolve
    from bench.simulate.models import summaries

    return resolve(parse_mix(f"{kind}=1"), summaries(CARDS), lambda name: CARDS[name].sampling.accepted_steps())  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", KINDS)
def test_programs_are_those_of_the_server(kind):
    """Each kind's request, read by the real API, gives the same programs, one a row."""
    (known,) = _resolved(kind)
    card: ModelCard = CARDS[known.model]
    model: Any = SimpleNamespace(card=card, programs=ProgramCache(card), samplers=available_samplers(card))
    options = dict(known.options)
    if known.sampler:
        request = sample_request(known.model, {"sampler": known.sampler, **options})  # type: ignore[typeddict-item]
        plan = sample_plan(model, request, 1024)
        wanted = (plan.program,) * len(plan.labels)
    else:
        import numpy as np

        images = options.pop("images", 1)
        request = score_request(known.model, np.zeros((images, *card.image.shape), np.float32), **options)
        wanted = tuple(program for _, program in score_plan(model, request) for _ in range(images))
    assert compiled(kind).programs == wanted


def test_a_guided_step_takes_two_rows():
    """The lines of a call are counted in network rows."""
    group = Group("digits-ddpm", "denoiser", "ensemble")
    assert compiled("ddim:8").lines == {group: 8}
    assert compiled("ddim:8:guidance=1:count=3").lines == {group: 48}


def test_a_job_is_as_the_api_makes_it():
    """One row a sample, numbered, with its priority and its deadline."""
    call = compiled("ddim:2:count=3:priority=4")
    job = call.job(print, 7, 9.0, 1.0)
    assert [(row.sample, row.seed, row.line) for row in job.rows] == [(0, 7, 0), (1, 7, 0), (2, 7, 0)]
    assert (job.priority, job.deadline, job.arrived, job.row_bytes) == (4, 9.0, 1.0, call.row_bytes)


def test_samples_and_scores_have_their_own_costs_of_the_host():
    """And each step of a mix must have one of the device."""
    groups = {group for part in parse_mix(DEFAULT_MIX) for group in compiled(part.name).lines}
    steps = tuple(StepCost(*group, rows=(1,), seconds=((0.1,),)) for group in sorted(groups))
    costs = Costs(steps, HostCost(1.0), HostCost(2.0))
    calls = {call.name: call for call in compile_calls(parse_mix(DEFAULT_MIX), CARDS, costs)}
    assert calls["ddim:1"].host.receive == 1.0
    assert calls["score:model=digits-vdrme"].host.receive == 2.0
    with pytest.raises(CostError, match="digits-vdrme/generator"):
        compile_calls(parse_mix(DEFAULT_MIX), CARDS, Costs(steps[:1]))


@pytest.mark.parametrize(("kind", "words"), [
    ("ddim:4:model=nobody", "no model 'nobody'"),
    ("vdrme:5:model=digits-vdrme", "steps"),
    ("ddim:4:m=0.5:model=digits-ddpm", "m"),
    ("score:model=digits-ddpm", "digits-ddpm"),
    ("score:model=digits-vdrme:scales=nowhere", "nowhere"),
    ("infer:model=digits-ddpm", "not simulated"),
])  # fmt: skip
def test_what_the_server_would_refuse_is_refused(kind, words):
    """With the kind and the server's words."""
    with pytest.raises(MixError, match=words):
        compiled(kind)


def test_a_folder_without_models_is_refused(tmp_path: Path):
    """By its name."""
    with pytest.raises(ModelsError, match="neither bundles"):
        read_cards(tmp_path)


def test_cards_of_bundles_are_those_of_the_newest_versions(tmp_path: Path, repository: Path):
    """A repository's manifests give the same cards as the checkpoints that they were exported from."""
    assert read_cards(repository)["digits-ddpm"].networks == CARDS["digits-ddpm"].networks


def test_torch_is_not_needed():
    """Nothing that a study imports does."""
    import subprocess
    import sys

    code = "import sys, bench.simulate.command; sys.exit('torch' in sys.modules or 'onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
