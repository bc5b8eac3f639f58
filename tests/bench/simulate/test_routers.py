"""How calls are spread: by what a router can know."""

from __future__ import annotations

import random
from collections import Counter
from functools import lru_cache

import numpy as np
import pytest

from bench.simulate.routers import POLICIES, ByModel, LeastLoaded, Oracle, RoundRobin, TwoChoices, homes_of
from tests.bench.simulate.fleets import MODELS, call, costs, fleet, run

CALL = call()
EXPONENTIAL = tuple((-np.log1p(-(np.arange(500) + 0.5) / 500)).tolist())


def test_round_robin_takes_all_in_turn():
    """Each once before any again."""
    router = RoundRobin(5, random.Random(0))
    picked = [router.pick(CALL) for _ in range(10)]
    assert sorted(picked[:5]) == [0, 1, 2, 3, 4]
    assert picked[5:] == picked[:5]


def test_the_least_loaded_is_the_one_with_fewest_open_calls():
    """Of equals the one picked longest ago; an answer makes room again."""
    router = LeastLoaded(range(3), random.Random(0))
    picked = [router.pick(CALL) for _ in range(3)]
    assert sorted(picked) == [0, 1, 2]
    router.answered(picked[1])
    assert [router.pick(CALL) for _ in range(2)] == [picked[1], picked[0]]


def test_two_choices_takes_the_better_of_two():
    """Of two replicas always the better one; of many, each is taken, and none gets far ahead."""
    both = TwoChoices(2, random.Random(0))
    first = both.pick(CALL)
    assert both.pick(CALL) == 1 - first
    many = TwoChoices(100, random.Random(0))
    counts = Counter(many.pick(CALL) for _ in range(10_000))
    assert len(counts) == 100
    assert max(counts.values()) <= 105  # random ones would reach about 125
    assert TwoChoices(1, random.Random(0)).pick(CALL) == 0


def test_models_get_replicas_in_proportion_to_their_work():
    """Disjoint, at least one each, all of them given away."""
    homes = homes_of({"a": 6.0, "b": 3.0, "c": 0.01}, 10)
    assert {model: len(home) for model, home in homes.items()} == {"a": 6, "b": 3, "c": 1}
    assert sorted(replica for home in homes.values() for replica in home) == list(range(10))


def test_more_models_than_replicas_share_them():
    """The largest has one for itself, the smaller ones the other together."""
    assert homes_of({"a": 5.0, "b": 3.0, "c": 1.0}, 2) == {"a": (0,), "b": (1,), "c": (1,)}


@pytest.mark.parametrize("replicas", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("shares", [{"a": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 1e6, "b": 1.0, "c": 1e-6}])
def test_every_model_has_a_home_and_no_replica_is_left_over(shares, replicas):
    """For any number of replicas."""
    homes = homes_of(shares, replicas)
    assert set(homes) == set(shares)
    assert all(homes.values())
    assert len({replica for home in homes.values() for replica in home}) == (
        replicas if replicas >= len(shares) else min(replicas, len(shares))
    )


def test_by_model_each_replica_is_asked_for_one_model():
    """And each model's calls are spread over its replicas alone; with round robin every replica gets all."""
    calls = [call(1), call(2, MODELS[1]), call(3, MODELS[2])]
    given = costs((0.1,))
    assert set(run(fleet("by-model", 9, given), calls, 20.0, 50.0).models) == {1}
    assert set(run(fleet("round-robin", 9, given), calls, 20.0, 50.0).models) == {3}


def test_by_model_an_answer_is_credited_to_its_own_model():
    """A model's open calls do not change with another's answers."""
    router = ByModel({"a": 1.0, "b": 1.0}, 4, random.Random(0))
    other = call(model=MODELS[1])
    first = [router.pick(CALL) for _ in range(2)]
    theirs = [router.pick(other) for _ in range(2)]
    assert not set(first) & set(theirs)
    router.answered(theirs[0])
    router.answered(first[0])
    assert router.pick(CALL) == first[0]


def test_the_oracle_goes_where_least_work_is_left():
    """Whatever was sent there before."""
    router = Oracle(3)
    for replica, seconds in enumerate((3.0, 1.0, 2.0)):
        router.has_left(replica, seconds)
    assert router.pick(CALL) == 1
    router.has_left(1, 5.0)
    assert router.pick(CALL) == 2


@lru_cache
def p99(policy: str, routers: int = 1) -> float:
    servers = fleet(policy, 30, costs(EXPONENTIAL), routers=routers, max_batch_rows=1, slots=2000)
    latency = run(servers, [call()], 0.9 * 30, 250.0, seed=7).latency
    return float(np.percentile(latency, 99))


def test_two_choices_beat_chance_and_round_robin_in_the_tail_and_more_knowledge_beats_two_choices():
    """At nine tenths of the load, one row a batch, steps of exponential length."""
    tail = {policy: p99(policy) for policy in POLICIES if policy != "by-model"}
    assert tail["two-choices"] < 0.6 * tail["random"]
    assert tail["two-choices"] < 0.8 * tail["round-robin"]
    assert tail["round-robin"] < tail["random"]
    assert tail["least-loaded"] < tail["two-choices"]


def test_routers_that_do_not_know_of_each_other_spread_less_well():
    """The fewest open calls of one among ten routers say little of a replica."""
    assert p99("least-loaded", routers=30) > 1.5 * p99("least-loaded")


def test_the_work_left_comes_back_to_nothing():
    """The oracle's account of each replica is 0 when all is done, whatever was refused or late."""
    told: dict[int, float] = {}

    class Told(Oracle):
        def has_left(self, replica: int, seconds: float) -> None:
            told[replica] = seconds
            super().has_left(replica, seconds)

    makers = POLICIES["oracle"]
    POLICIES["oracle"] = lambda shares, replicas, rng: Told(replicas)
    try:
        servers = fleet("oracle", 3, costs((1.0, 2.0)), slots=4, max_batch_rows=2, max_waiting_rows=6)
        found = run(servers, [call(2), call(3, rows=2)], 5.0, 100.0, timeout=8.0)
    finally:
        POLICIES["oracle"] = makers
    assert len(found.reasons) >= 3  # some were refused, and some were late
    assert told == pytest.approx({0: 0.0, 1: 0.0, 2: 0.0}, abs=1e-9)
