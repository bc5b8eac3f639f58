"""Loads on servers of the Open Inference Protocol: one that is not ours, and ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.cli import main
from bench.load import LoadPlan, run_load
from bench.mix import MixError, parse_mix
from bench.schedule import Poisson
from bench.targets import OipTarget, TargetError
from tests.bench.oip_server import OipServer, oip_server
from tests.running import RunningServer


@pytest.fixture
def other() -> Iterator[OipServer]:
    with oip_server() as other:
        yield other


def prepare(address: str, mix: str) -> list[str]:
    """The models that the kinds of a mix go to."""

    async def whole() -> list[str]:
        async with OipTarget(address) as target:
            return [kind.model for kind in await target.prepare(parse_mix(mix))]

    return asyncio.run(whole())


def test_samples_and_scores_are_asked_for_by_the_contract(other: OipServer) -> None:
    """Seeds, labels, images and parameters arrive as server/api/oip.py describes; every row has a seed of its own."""
    mix = "ddim:4:count=3:labels=7=1,iddim:8:m=0.2/0.6:priority=3:model=sampler=1,score:images=2:scales=all=1"
    result, outcomes = run_load(LoadPlan(mix, Poisson(100), duration=0.4, warmup=0), OipTarget(other.address))
    assert result.errors == {}
    assert result.total.ok == len(other.requests) == len(outcomes) > 0
    assert list(result.server["models"].values()) == ["sampler", "sampler", "scorer"]
    assert (result.server["server"], result.server["version"]) == ("other", "9")
    assert result.total.rows == sum(kind.ok * rows for kind, rows in zip(result.kinds, (3, 1, 2), strict=True))
    seeds = []
    for request in other.requests:
        inputs = {tensor.name: tensor for tensor in request.inputs}
        values = dict(request.parameters.items())
        if request.model_name == "scorer":
            images = np.frombuffer(request.raw_input_contents[0], "<f4")
            assert list(inputs["IMAGES"].shape) == [2, 1, 4, 6]
            assert -1 <= images.min() < -0.5 < 0.5 < images.max() <= 1
            assert values["scales"].string_param == "all"
            assert [output.name for output in request.outputs] == ["ENERGY"]
            continue
        seeds += np.frombuffer(request.raw_input_contents[0], "<u8").tolist()
        if values["sampler"].string_param == "ddim":
            assert np.frombuffer(request.raw_input_contents[1], "<i8").tolist() == [7, 7, 7]
            assert list(inputs["SEED"].shape) == list(inputs["LABEL"].shape) == [3, 1]
            assert values["steps"].int64_param == 4
        else:
            assert list(inputs) == ["SEED"]
            assert (values["m"].string_param, values["steps"].int64_param) == ("0.2,0.6", 8)
            assert values["priority"].int64_param == 8  # fewstep.v1's 3 is level 11 - 3
    assert len(set(seeds)) == len(seeds)


def test_any_model_is_asked_with_random_inputs_of_its_metadata(other: OipServer) -> None:
    """Sizes are right for every datatype, the rows are those asked for, and a model may have no axis of rows."""
    mix = "infer:model=mixed:rows=4=1,infer:model=unbatched=1"
    result, _ = run_load(LoadPlan(mix, Poisson(100), duration=0.3, warmup=0), OipTarget(other.address))
    assert result.errors == {}
    assert [kind.rows / kind.ok for kind in result.kinds] == [4, 2]
    mixed = next(request for request in other.requests if request.model_name == "mixed")
    assert [list(tensor.shape) for tensor in mixed.inputs] == [[4, 3], [4], [4, 2, 2], [4, 5]]
    floats = np.frombuffer(mixed.raw_input_contents[0], "<f2")
    assert len(set(floats.tolist())) > 6
    assert set(mixed.raw_input_contents[2]) == {0, 1}
    brain = (np.frombuffer(mixed.raw_input_contents[3], "<u2").astype("<u4") << 16).view("<f4")
    assert 0 < np.abs(brain).max() <= 1
    unbatched = next(request for request in other.requests if request.model_name == "unbatched")
    assert list(unbatched.inputs[0].shape) == [2, 3]


@pytest.mark.parametrize(
    ("mix", "said"),
    [
        ("infer:model=open=1", r"'infer:model=open': input X of model 'open' has the shape \[-1, -1\]"),
        ("infer:model=words=1", "input X of model 'words' is of datatype BYTES"),
        ("infer:model=unbatched:rows=3=1", r"the fixed shape \[2, 3\], so that rows=3"),
        ("infer:model=none=1", "model 'none': no model 'none'"),
        ("score:model=sampler=1", "model 'sampler' does not serve it, whose inputs are SEED UINT64, LABEL INT64"),
    ],
)
def test_what_cannot_be_asked_is_told_before_the_load(other: OipServer, mix: str, said: str) -> None:
    """The message quotes the kind and names the input at fault."""
    with pytest.raises(MixError, match=said):
        prepare(other.address, mix)
    assert other.requests == []


def test_failures_have_their_codes(other: OipServer) -> None:
    """A refusal has the status's name; an answer of another size than asked for is one that failed."""
    result, _ = run_load(
        LoadPlan("infer:model=full=1,infer:model=short=1,ddim:1:timeout=0.05=1", Poisson(60), duration=0.3, warmup=0),
        OipTarget(other.address),
    )
    full, short, ddim = result.kinds
    assert (full.errors, short.errors) == ({"UNAVAILABLE": full.sent}, {"BAD_ANSWER": short.sent})
    assert ddim.ok == ddim.sent
    other.seconds = 0.2
    slow, _ = run_load(LoadPlan("ddim:1:timeout=0.05=1", Poisson(20), duration=0.3, warmup=0), OipTarget(other.address))
    assert slow.errors == {"DEADLINE_EXCEEDED": slow.total.sent}


def test_servers_that_cannot_be_measured(other: OipServer) -> None:
    """Nobody there, not ready, or no list of models where the mix names none; a named model needs no list."""
    with pytest.raises(TargetError, match=r"127\.0\.0\.1:1: no gRPC server answers within 0\.1 s"):
        run_load(LoadPlan("ddim:1=1"), OipTarget("127.0.0.1:1", connect_timeout=0.1))
    other.lists = False
    with pytest.raises(TargetError, match="does not list its models, name them with model="):
        prepare(other.address, "ddim:1=1")
    assert prepare(other.address, "ddim:1:model=sampler=1") == ["sampler"]
    other.ready = False
    with pytest.raises(TargetError, match="other is not ready"):
        prepare(other.address, "ddim:1:model=sampler=1")


def test_our_own_server_by_this_protocol(server: RunningServer, tmp_path: Path) -> None:
    """Samplers, scorers and any model at all, by the command; the server says where the time went."""
    mix = "ddim:2:model=digits-ddpm:count=2=1,score:model=digits-vdrme.score=1,infer:model=digits-ddpm:rows=2=1"
    arguments = ["--rate", "30", "--duration", "0.7", "--warmup", "0.2", "--output", str(tmp_path)]
    assert main(["load", "--protocol", "oip", "--address", server.address, "--mix", mix, *arguments]) == 0
    document = json.loads((tmp_path / "load.json").read_text())
    assert document["total"]["errors"] == {}
    assert document["server"]["server"] == "fewstep"
    for kind in document["kinds"]:
        assert all(kind["stages"][stage] > 0 for stage in ("queue", "network", "update", "waits, host", "wire"))
        assert kind["batch_rows"] >= 1
        assert kind["rows"] == kind["ok"] * (1 if kind["name"].startswith("score") else 2)
    with pytest.raises(MixError, match="'ddim:2': several models may serve it, name one with model=: "):
        prepare(server.address, "ddim:2=1")
