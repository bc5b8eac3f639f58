"""Requests through simulated servers: moments by hand, laws of queues, and what must always hold."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.simulate.costs import CostError, HostCost
from bench.simulate.fleet import simulate
from bench.simulate.routers import POLICIES
from tests.bench.simulate.fleets import MODELS, at, call, costs, fleet, run


def latencies(*when: float, calls: Any = None, kinds: Any = None, limits: Any = None, **given: Any) -> list[float]:
    """Of requests to one server, in the order of their arrivals."""
    server = fleet("round-robin", 1, costs(**given), **(limits or {}))
    return simulate(server, calls or [call()], at(*when, kinds=kinds), duration=100.0).latency.tolist()


def test_a_request_takes_its_steps():
    """Three steps of a second, alone on a server that costs nothing else."""
    assert latencies(0.0, calls=[call(3)]) == pytest.approx([3.0])


def test_who_arrives_during_a_step_joins_at_the_next():
    """The second request waits half a step and then shares every batch; a row more costs 0.1 s."""
    assert latencies(0.0, 0.5, calls=[call(3)], per_row=0.1) == pytest.approx([1 + 1.1 + 1.1, 0.5 + 1.1 + 1.1 + 1.0])


def test_a_batch_that_is_full_leaves_the_others_to_the_next():
    """With one row a batch, requests run one after the other."""
    assert latencies(0.0, 0.0, 0.0, limits={"max_batch_rows": 1}) == pytest.approx([1.0, 2.0, 3.0])


def test_the_way_takes_half_of_a_delay_each():
    """A request reaches the server after half of its delay: a step that starts meanwhile is missed."""
    assert latencies(0.0, delays=(0.4,)) == pytest.approx([1.4])


def test_the_way_past_a_busy_device_takes_its_own_time():
    """The second request sets out while the first one's step runs, the first comes back past the second one's."""
    way = {"delays": (0.2,), "busy_delays": (0.6,)}
    assert latencies(0.0, 0.5, **way, limits={"max_batch_rows": 1}) == pytest.approx([0.1 + 1.0 + 0.3, 2.2 - 0.5])


def test_the_host_handles_one_call_at_a_time():
    """Two requests at once: the second is received after the first, and answered after it."""
    host = HostCost(receive=0.1, answer=0.2)
    assert latencies(0.0, 0.0, calls=[call(host=host)]) == pytest.approx([0.1 + 1 + 0.2, 1.1 + 1 + 0.2])


def test_the_host_takes_a_row_s_time_for_each_row():
    """An answer of three samples takes three times what one of a row does beside the call itself."""
    host = HostCost(answer=0.1, row=0.2)
    assert latencies(0.0, calls=[call(rows=3, host=host)]) == pytest.approx([1.0 + 0.1 + 3 * 0.2])


def test_between_two_batches_the_device_rests():
    """Before each of two steps, the first included, as an idle engine has to be woken."""
    assert latencies(0.0, calls=[call(2)], between=0.25) == pytest.approx([0.25 + 1 + 0.25 + 1])


def test_the_first_step_after_a_pause_is_longer():
    """Not the second one, nor one whose row arrived while the device ran; the next pause counts again."""
    found = latencies(0.0, 0.5, 10.0, calls=[call(2)], wake=0.5)
    assert found == pytest.approx([1.5 + 1, 1.0 + 1 + 1, 1.5 + 1])


def test_a_slow_spell_makes_the_steps_longer_that_begin_in_it():
    """Each spell lasts for five seconds, whichever the run begins with; four requests see both of them twice."""
    found = latencies(0.0, 5.0, 10.0, 15.0, spells=(1.0, 3.0), spell_seconds=5.0)
    assert sorted(found[:2]) == pytest.approx([1.0, 3.0])
    assert found[:2] == pytest.approx(found[2:])


def test_the_host_s_work_holds_a_step_up():
    """Half of the 0.2 s that the host takes to receive the second request are lost to the first one's step."""
    found = latencies(0.0, 0.5, calls=[call(host=HostCost(receive=0.2))], interference=0.5)
    assert found == pytest.approx([0.2 + 1.0 + 0.5 * 0.2, 0.2 + 1.1 - 0.5 + 1.0])


def test_a_host_that_is_busy_throughout_holds_a_step_up_throughout():
    """With five requests to receive, a step of a second that loses half of the time takes two."""
    found = latencies(*[0.0] * 5, calls=[call(host=HostCost(receive=1.0))], interference=0.5)
    # Received at 1, 2, .. 5. The first step runs from 1 to 3, but its answer stands behind what is to be received until
    # 5; the second step, of two rows, runs to 5, and the third, with the host idle, to 6.
    assert found == pytest.approx([5.0, 5.0, 5.0, 6.0, 6.0])


def test_a_caller_gives_up_at_the_timeout():
    """Of three requests with 1.5 s each on a server of a second a request, one ends well."""
    server = fleet("round-robin", 1, costs(), max_batch_rows=1)
    found = simulate(server, [call()], at(0.0, 0.0, 0.0), duration=100.0, timeout=1.5)
    assert [found.reasons[reason] for reason in found.reason] == ["", *["late DEADLINE_EXCEEDED"] * 2]


def test_a_full_queue_refuses():
    """One slot and one place to wait: of four at once the last two are refused, at once."""
    server = fleet("round-robin", 1, costs(), slots=1, max_waiting_rows=1)
    found = simulate(server, [call()], at(0.0, 0.0, 0.0, 0.0), duration=100.0)
    assert [found.reasons[reason] for reason in found.reason] == ["", "", *["refused RESOURCE_EXHAUSTED"] * 2]
    assert found.latency.tolist() == pytest.approx([1.0, 2.0, 0.0, 0.0])


def test_a_batch_without_a_cost_is_an_error():
    """It names the step, and those that there are."""
    with pytest.raises(CostError, match=r"b/net \(ensemble\).*a/net"):
        run(fleet("random", 1, costs(models=1)), [call(model=MODELS[1])], 1.0, 10.0)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    policy=st.sampled_from(list(POLICIES)),
    replicas=st.integers(1, 5),
    routers=st.integers(1, 3),
    load=st.floats(0.1, 4.0),
    timeout=st.sampled_from([None, 0.5, 5.0, 40.0]),
    interference=st.sampled_from([0.0, 0.7]),
    seed=st.integers(0, 10**6),
)
def test_every_request_ends_exactly_once(policy, replicas, routers, load, timeout, interference, seed):
    """Whatever the policy and the load; `simulate` itself counts answers, and here their work is counted too."""
    host = HostCost(receive=0.01, answer=0.01)
    calls = [call(1, host=host), call(4, MODELS[1], rows=2, host=host), call(2, MODELS[2], weight=0.5, host=host)]
    given = costs((0.5, 1.0, 1.5), per_row=0.05, between=0.01, wake=0.1, delays=(0.0, 0.2), interference=interference)
    servers = fleet(policy, replicas, given, routers=routers, slots=8, max_batch_rows=4, max_waiting_rows=16)
    found = run(servers, calls, load * replicas, 20.0, timeout=timeout, seed=seed)
    assert found.reasons[0] == ""
    assert not np.isnan(found.latency).any()
    assert (found.latency[found.reason == 0] >= 0.5).all()
    if timeout is not None:
        assert (found.latency[found.reason == 0] <= timeout).all()
    least = sum(sum(calls[k].lines.values()) for k in found.schedule.kind[found.reason == 0])
    assert found.tally.rows.total() <= sum(sum(calls[k].lines.values()) for k in found.schedule.kind)
    if found.seconds <= 20.0:
        assert found.tally.rows.total() >= least


def test_all_steps_of_all_requests_run():
    """Where nobody is refused, the batches' rows are the steps that were asked for, and devices were busy for them."""
    calls = [call(1), call(4, MODELS[1], rows=2)]
    schedule = run(fleet("two-choices", 3, costs((0.1,))), calls, 5.0, 100.0).schedule
    found = simulate(fleet("two-choices", 3, costs((0.1,))), calls, schedule, duration=1e9)
    wanted = sum(sum(calls[k].lines.values()) for k in schedule.kind)
    assert found.tally.rows.total() == wanted
    assert sum(found.tally.busy) == pytest.approx(0.1 * found.tally.batches.total())


def test_a_run_can_be_repeated():
    """To the bit with the same seed, and not with another one."""
    servers = fleet("two-choices", 4, costs((0.5, 1.5), delays=(0.1, 0.3)))
    first, again = (run(servers, [call(2), call(3)], 3.0, 200.0, seed=4) for _ in range(2))
    other = run(servers, [call(2), call(3)], 3.0, 200.0, seed=5)
    np.testing.assert_array_equal(first.latency, again.latency)
    assert first.events == again.events
    assert len(other.latency) != len(first.latency) or (other.latency != first.latency).any()


SERVICE = {
    "deterministic": (1.0,),
    "exponential": tuple((-np.log1p(-(np.arange(500) + 0.5) / 500)).tolist()),
    "two sizes": (*[0.5] * 9, 5.5),
}


def one_by_one(seconds: Any) -> Any:
    """A server that runs one row a batch, in the order of the arrivals."""
    return fleet("round-robin", 1, costs(seconds), max_batch_rows=1, max_rows_in_flight=10**6, slots=5000)


def test_each_request_waits_as_the_queue_of_one_server_says():
    """Lindley's recursion over the same arrivals: w' = max(0, w + s - gap), for each of 5000 requests."""
    found = run(one_by_one((1.0,)), [call()], 0.8, 6000.0, seed=3)
    waits = [0.0]
    for gap in np.diff(found.schedule.at):
        waits.append(max(0.0, waits[-1] + 1.0 - gap))
    np.testing.assert_allclose(found.latency, np.array(waits) + 1.0, atol=1e-6)


@pytest.mark.parametrize(("service", "load"), [("exponential", 0.5), ("two sizes", 0.3)])
def test_the_mean_wait_is_that_of_pollaczek_and_khinchine(service, load):
    """One row a batch, one step a request: mean wait = rate E[S^2] / (2 (1 - load)), whatever the law of S.

    Of three runs of 8000 requests, at the load that each came to; the mean's standard deviation is 0.04 of it.
    """
    seconds = np.array(SERVICE[service])
    rate = load / seconds.mean()
    waits, wanted = [], []
    for seed in range(3):
        found = run(one_by_one(SERVICE[service]), [call()], rate, 8000 / rate, seed=seed)
        busy = sum(found.tally.busy) / found.tally.end
        assert busy == pytest.approx(load, rel=0.1)
        waits.append(found.latency.mean() - seconds.mean())
        wanted.append(busy / seconds.mean() * np.mean(seconds**2) / (2 * (1 - busy)))
    assert np.mean(waits) == pytest.approx(np.mean(wanted), rel=0.12)


def test_rows_that_take_turns_share_the_device():
    """Short steps, one row a batch: as in processor sharing, slowdown does not grow with the length of a program."""
    calls = [call(5, weight=9.0), call(25)]
    found = run(one_by_one((0.1,)), calls, 0.7 / 0.7, 1500.0, seed=1)
    short, long = (found.latency[found.schedule.kind == kind].mean() / length for kind, length in ((0, 0.5), (1, 2.5)))
    assert long / short == pytest.approx(1.0, rel=0.15)
    assert found.latency.mean() == pytest.approx(0.7 / (1 - 0.7), rel=0.25)


def test_round_robin_makes_arrivals_regular():
    """Each of many servers sees every n-th arrival: at the same load they wait less than one server alone."""
    alone = run(one_by_one((1.0,)), [call()], 0.7, 3000.0, seed=2).latency.mean() - 1.0
    many = fleet("round-robin", 50, costs(), max_batch_rows=1)
    assert run(many, [call()], 0.7 * 50, 60.0, seed=2).latency.mean() - 1.0 < 0.2 * alone


def work_per_request(replicas: int) -> float:
    """Calls of functions that a run of a fleet takes for each request, the building of the fleet left out."""
    servers = fleet("least-loaded", replicas, costs((0.01,)))
    counts = []
    for requests in (0, 2000):
        calls = 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        schedule = at(*(np.arange(requests) / (50.0 * replicas)).tolist())
        sys.setprofile(count)
        try:
            simulate(servers, [call(3)], schedule, duration=1e9)
        finally:
            sys.setprofile(None)
        counts.append(calls)
    return (counts[1] - counts[0]) / 2000


def test_a_request_costs_as_much_to_simulate_among_many_replicas():
    """At the same load a replica, 200 of them take no more work for a request than 5, but for a fifth."""
    assert work_per_request(200) < 1.2 * work_per_request(5)
