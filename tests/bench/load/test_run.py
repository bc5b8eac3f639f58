"""Loads from the outside: a server with known behaviour, and what is reported of it."""

from __future__ import annotations

import math
from statistics import median

import pytest

from bench.load import Clients, LoadPlan, LoadResult, run_load
from bench.schedule import Bursts, Poisson
from bench.sender import NOT_SENT, Outcome
from bench.targets import NativeTarget
from tests.bench.fake_server import FakeServer


def load(
    fake: FakeServer, mix: str, rate: float, duration: float, **options: float
) -> tuple[LoadResult, list[Outcome]]:
    plan = LoadPlan(mix, Poisson(rate), duration, **{"warmup": 0, **options})  # type: ignore[arg-type]
    return run_load(plan, NativeTarget(fake.address))


def test_a_stall_is_charged_to_all_that_were_due_meanwhile(fake: FakeServer) -> None:
    """A server that answers nothing for half a second shows it in the latencies of the requests scheduled then.

    A closed loop would send one request, wait, and report a single slow one out of a hundred.
    """
    fake.stall = (0.5, 1.0)
    result, outcomes = load(fake, "ddim:1=1", 100, 1.5)
    (kind,) = result.kinds
    assert kind.ok == kind.sent == len(outcomes)
    due = [outcome for outcome in outcomes if 0.55 < outcome.scheduled < 0.95]
    assert len(due) > 20
    for outcome in due:
        assert outcome.latency > 1.0 - outcome.scheduled - 0.05
    assert kind.latency["p99"] > 0.4
    others = [outcome for outcome in outcomes if outcome.scheduled < 0.45 or outcome.scheduled > 1.05]
    assert median(outcome.latency for outcome in others) < median(outcome.latency for outcome in due)


def test_a_closed_loop_reports_the_same_stall_for_the_requests_in_it_alone(fake: FakeServer) -> None:
    """Two clients wait through the stall; all other requests are quick, and none was late."""
    fake.stall = (0.5, 1.0)
    fake.sample_seconds = 0.005
    result, outcomes = run_load(LoadPlan("ddim:1=1", Clients(2), duration=1.5, warmup=0), NativeTarget(fake.address))
    assert sum(0.4 < outcome.scheduled < 0.6 and outcome.latency > 0.4 for outcome in outcomes) == 2
    assert result.total.latency["p50"] < 0.4
    assert result.total.latency == pytest.approx(result.total.service, abs=0.01)


def test_clients_wait_for_their_answers_and_think(fake: FakeServer) -> None:
    """Never more requests are open than there are clients, and thinking makes them fewer."""
    fake.sample_seconds = 0.02
    plan = LoadPlan("ddim:1=1,score=1", Clients(3), duration=0.5, warmup=0.1)
    result, outcomes = run_load(plan, NativeTarget(fake.address))
    ends = sorted((outcome.scheduled + outcome.latency, -1) for outcome in outcomes)
    open_now = most = 0
    for _, change in sorted([(outcome.scheduled, 1) for outcome in outcomes] + ends):
        open_now += change
        most = max(most, open_now)
    assert most == 3
    assert {kind.name for kind in result.kinds if kind.ok} == {"ddim:1", "score"}
    assert len(outcomes) <= 3 * (0.6 / 0.02 + 1)
    thinking, _ = run_load(
        LoadPlan("ddim:1=1,score=1", Clients(3, think=0.1), duration=0.5, warmup=0.1), NativeTarget(fake.address)
    )
    assert 0 < thinking.total.sent < 0.6 * result.total.sent


def test_every_scheduled_request_is_sent_once_and_the_warm_up_is_not_counted(fake: FakeServer) -> None:
    """Kinds, options and seeds arrive as scheduled; figures are those of the requests after the warm-up."""
    mix = "ddim:1=1,iddim:4:m=0.6:count=2=1,score:images=3:scales=all=1"
    result, outcomes = load(fake, mix, 200, 0.5, warmup=0.25)
    assert len(fake.requests) == len(outcomes)
    measured = [outcome for outcome in outcomes if outcome.scheduled >= 0.25]
    assert sum(kind.sent for kind in result.kinds) == result.total.sent == len(measured) < len(outcomes)
    assert result.offered == pytest.approx(len(measured) / 0.5)
    iddim = [request for request in fake.requests if getattr(request, "sampler", "") == "iddim"]
    assert all((list(r.m), r.count, r.steps, r.model) == ([0.6], 2, 4, "toy") for r in iddim)
    assert len({request.seed for request in fake.requests}) == len(fake.requests)
    scored = [request for request in fake.requests if hasattr(request, "scales")]
    assert all(list(request.images.shape) == [3, 1, 4, 6] for request in scored)
    assert [kind.batch_rows for kind in result.kinds] == [2.5, 2.5, 3]
    assert [kind.rows for kind in result.kinds] == [
        kind.ok * rows for kind, rows in zip(result.kinds, (1, 2, 3), strict=True)
    ]
    assert result.server == {
        "protocol": "fewstep.v1",
        "version": "0",
        "engine": "fake",
        "models": dict.fromkeys([k.name for k in result.kinds], "toy"),
    }


def test_bursts_arrive_together(fake: FakeServer) -> None:
    """A group of requests is scheduled at one instant, and all are sent."""
    plan = LoadPlan("ddim:1=1", Bursts(200, 10), duration=0.5, warmup=0)
    _, outcomes = run_load(plan, NativeTarget(fake.address))
    assert len(outcomes) % 10 == 0
    assert len({outcome.scheduled for outcome in outcomes}) == len(outcomes) / 10
    assert len(fake.requests) == len(outcomes) > 0


def test_errors_are_counted_by_code_and_kept_out_of_the_percentiles(fake: FakeServer) -> None:
    """Refusals of one kind leave the figures of the other alone."""
    result, _ = load(fake, "ddim:1=1,ddim:2:model=full=1", 100, 0.4)
    good, bad = result.kinds
    assert (good.ok, good.errors) == (good.sent, {})
    assert (bad.ok, bad.errors) == (0, {"RESOURCE_EXHAUSTED": bad.sent})
    assert math.isnan(bad.latency["p50"])
    assert bad.error_share == 1
    assert result.errors == bad.errors
    assert result.achieved <= good.ok / 0.4 + 1e-9


def test_requests_beyond_the_bound_are_not_sent_and_count_as_errors(fake: FakeServer) -> None:
    """A server that answers too slowly cannot make the generator pile up requests without end."""
    fake.sample_seconds = 0.3
    result, _ = load(fake, "ddim:1=1", 100, 0.25, max_open=2)
    (kind,) = result.kinds
    assert kind.errors == {NOT_SENT: kind.sent - kind.ok}
    assert 2 <= kind.ok <= 4
    assert len(fake.requests) == kind.ok


def test_requests_that_take_too_long_end_at_their_deadline(fake: FakeServer) -> None:
    """A run ends soon after its duration even if the server never answers; a kind may have a deadline of its own."""
    fake.sample_seconds = 0.5
    result, _ = load(fake, "ddim:1=1,ddim:2:timeout=5=1", 40, 0.2, timeout=0.2)
    hasty, patient = result.kinds
    assert hasty.errors == {"DEADLINE_EXCEEDED": hasty.sent}
    assert patient.ok == patient.sent > 0


def test_progress_tells_of_every_request(fake: FakeServer) -> None:
    """What is sent and done only grows, and ends with all of them."""
    fake.sample_seconds = 0.3
    seen: list[tuple[int, int]] = []
    plan = LoadPlan("ddim:1=1", Poisson(30), duration=0.5, warmup=0)
    _, outcomes = run_load(plan, NativeTarget(fake.address), progress=lambda sent, done: seen.append((sent, len(done))))
    assert seen == sorted(seen)
    assert all(done <= sent for sent, done in seen)
    assert any(done < sent for sent, done in seen)
    assert seen[-1] == (len(outcomes), len(outcomes))
