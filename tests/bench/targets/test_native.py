"""What the target of fewstep.v1 refuses before a load; loads on it are in tests/bench/load."""

from __future__ import annotations

import pytest

from bench.load import LoadPlan, run_load
from bench.mix import MixError
from bench.targets import NativeTarget, TargetError
from tests.bench.fake_server import fake_server
from tests.bench.oip_server import oip_server


def test_servers_that_cannot_be_measured() -> None:
    """Nobody there, or a server of another protocol."""
    with pytest.raises(TargetError, match=r"127\.0\.0\.1:1: no gRPC server answers within 0\.1 s"):
        run_load(LoadPlan("ddim:1=1"), NativeTarget("127.0.0.1:1", connect_timeout=0.1))
    with oip_server() as other, pytest.raises(TargetError, match="is no fewstep server, or not ready: UNIMPLEMENTED"):
        run_load(LoadPlan("ddim:1=1"), NativeTarget(other.address))


def test_what_cannot_be_asked_is_told_before_the_load() -> None:
    """A model that there is not, and a call that is of another protocol."""
    with fake_server() as fake:
        for mix, said in (
            ("ddim:1:model=none=1", "'ddim:1:model=none': model: no 'none'; there is toy"),
            ("infer:model=toy=1", "'infer:model=toy': fewstep.v1 draws samples and scores images"),
            ("langevin:5=1", "'langevin:5': no model of the server serves it"),
        ):
            with pytest.raises(MixError, match=said):
                run_load(LoadPlan(mix), NativeTarget(fake.address))
        assert fake.requests == []


def test_an_answer_of_another_size_is_one_that_failed() -> None:
    """`mute` is asked for 3 images here and sends them; `garbled` is refused, whose model cannot be described."""
    with fake_server() as fake:
        result, _ = run_load(
            LoadPlan("ddim:1:count=3:model=mute=1", duration=0.2, warmup=0), NativeTarget(fake.address)
        )
        assert result.total.rows == 3 * result.total.ok > 0
