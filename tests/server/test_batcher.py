"""The step batcher with an injected clock: order, sharing, isolation and bookkeeping. No threads, no sleeps."""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import DeadlineExceeded, Internal, Overloaded, Unavailable
from tests.server.world import MODEL, OTHER, World


def test_rows_of_different_programs_share_a_forward():
    """Rows at different steps of programs of different lengths run in one batch."""
    world = World()
    world.submit(8)
    world.step()
    world.submit(1)
    world.submit(4)
    batch = world.step()
    assert sorted((row.line, len(row.program.lines)) for row in batch.rows if not row.job.ended) == [(1, 4), (2, 8)]
    assert len(batch.rows) == 3


def test_networks_kinds_and_models_do_not_mix():
    """A batch has one model, one network and one kind of update."""
    world = World()
    world.submit(1)
    world.submit(1, network="other")
    world.submit(1, kind="langevin")
    world.submit(1, kind="score")
    world.submit(1, model=OTHER)
    batches = world.run()
    assert len(batches) == 5
    assert len({(b.model, b.network, b.kind) for b in batches}) == 5


def test_a_short_request_overtakes_long_ones():
    """A 1-step request that arrives while 64 8-step rows run is done after the next step."""
    world = World(max_batch_rows=64)
    long = world.submit(8, rows=64)
    arrivals = []
    world.step(meanwhile=lambda: arrivals.append(world.submit(1)))
    world.step()
    assert world.ended == {arrivals[0]: None}
    world.run()
    assert world.ended[long] is None


def test_a_row_waits_for_the_rows_ahead_of_it_only():
    """With more rows in flight than a batch holds, everyone advances once a round."""
    world = World(max_batch_rows=4)
    jobs = [world.submit(3) for _ in range(10)]
    ran = Counter()
    for _ in range(6):
        batch = world.step()
        ran.update(row.job for row in batch.rows)
        counts = [ran[job] for job in jobs]
        assert max(counts) - min(counts) <= 1


def test_guided_rows_count_twice():
    """A guided row takes two network rows of the batch's bound."""
    world = World(max_batch_rows=4)
    for _ in range(3):
        world.submit(1, guided=True)
    assert [batch.network_rows for batch in world.run()] == [4, 2]


def test_a_single_row_larger_than_the_bound_still_runs():
    """A guided row alone passes a bound of one."""
    world = World(max_batch_rows=1)
    world.submit(2, guided=True)
    assert [batch.network_rows for batch in world.run()] == [2, 2]


def test_groups_take_turns():
    """Two networks with endless work alternate."""
    world = World(max_batch_rows=2)
    for _ in range(6):
        world.submit(2)
        world.submit(2, network="other")
    networks = [batch.network for batch in world.run()]
    assert networks.count("denoiser") == networks.count("other")
    assert all(networks[i] != networks[i + 1] for i in range(0, 4))


def test_rows_beyond_the_slots_wait_and_get_slots_as_they_free():
    """Never more rows in flight than slots; all finish."""
    world = World(capacity=3)
    job = world.submit(2, rows=10)
    assert world.batcher.admission.waiting_rows == 7
    while world.step() is not None:
        assert world.batcher.rows_in_flight <= 3
    assert world.ended == {job: None}
    assert world.batcher.admission.waiting_rows == world.batcher.admission.waiting_bytes == 0


def test_priority_gets_the_next_free_slot():
    """Of the jobs that wait, the higher priority goes first; equals keep their order."""
    world = World(capacity=1)
    first, low, high, high2 = (world.submit(1, priority=p) for p in (0, 0, 5, 5))
    order = [batch.rows[0].job for batch in world.run()]
    assert order == [first, high, high2, low]


def test_a_cancelled_job_leaves_and_its_neighbours_do_not_notice():
    """Its rows leave at the next step, its waiting rows at once; every slot comes back."""
    world = World(capacity=4)
    gone, stays = world.submit(5, rows=6), world.submit(5, rows=2)
    world.step()
    assert world.batcher.end(gone, Unavailable("gone"), "cancelled")
    assert not world.batcher.end(gone, Unavailable("gone"), "cancelled")
    assert world.batcher.admission.waiting_rows == 2
    world.run()
    assert world.ended == {stays: None}
    assert world.batcher.rows_in_flight == 0
    assert world.batcher.idle


def test_a_job_cancelled_while_it_runs_never_ends_twice():
    """Cancelled between schedule and complete: the batch completes, the rows are dropped, nobody is told."""
    world = World()
    job, other = world.submit(2), world.submit(2)
    batch, _ = world.batcher.schedule()
    world.batcher.end(job, Unavailable("gone"), "cancelled")
    world.note(world.batcher.complete(batch, 1.0))
    world.run()
    assert world.ended == {other: None}
    assert world.batcher.rows_in_flight == 0


def test_a_failed_row_ends_its_job_alone():
    """A row that diverges ends its own job with its error; the others of the batch go on."""
    world = World()
    bad, good = world.submit(3, rows=3), world.submit(3)
    error = Internal("sample 1 became non-finite at step 1 of 3")
    world.step(fail=lambda row: error if row.job is bad and row.sample == 1 else None)
    assert world.ended == {bad: error}
    world.run()
    assert world.ended[good] is None
    assert world.batcher.rows_in_flight == 0


def test_a_late_job_leaves_at_the_next_step():
    """A job whose deadline passes between two steps ends with DeadlineExceeded."""
    world = World()
    late, fine = world.submit(5, deadline=1.5), world.submit(5)
    world.run()
    assert isinstance(world.ended[late], DeadlineExceeded)
    assert world.ended[fine] is None


def test_a_job_that_waits_for_a_slot_ends_at_its_deadline():
    """A deadline that passes while a job waits for a slot ends it at the next step, not when its turn comes."""
    world = World(capacity=1)
    world.submit(100)
    waiting = world.submit(1, deadline=1.5)
    world.step()
    world.step()
    world.step()
    assert isinstance(world.ended[waiting], DeadlineExceeded)
    assert world.batcher.admission.waiting_rows == 0


def test_what_has_ended_is_not_kept():
    """Cancelled and finished jobs, deadlines or not, leave nothing in the queues behind a busy slot."""
    world = World(capacity=1, max_waiting_rows=10**6)
    world.submit(1000)
    for i in range(1000):
        job = world.submit(1, deadline=1e9 if i % 2 else None)
        world.batcher.end(job, Unavailable("gone"), "cancelled")
    done = world.submit(1, model=OTHER, deadline=1e9)
    while done not in world.ended:
        world.step()
    assert not world.batcher._models[MODEL].waited_for
    assert len(world.batcher._deadlines) == 0
    assert world.batcher.jobs == 1


def test_a_request_leaves_no_memory_behind():
    """With a deadline or without, on a server that is never full: it may run for years."""
    world = World()

    def memory_in_use() -> int:
        gc.collect()  # rows and jobs refer to each other
        return tracemalloc.get_traced_memory()[0]

    def serve(count: int) -> None:
        for number in range(count):
            world.submit(2, deadline=world.now + 10.0 if number % 2 else None)
            world.step(seconds=0.01)
            world.step(seconds=0.01)
            world.ended.clear()

    tracemalloc.start()
    try:
        serve(1000)
        before = memory_in_use()
        serve(4000)
        assert memory_in_use() - before < 20_000  # 5 bytes a request
    finally:
        tracemalloc.stop()


EVENTS = st.lists(
    st.one_of(
        st.tuples(
            st.just("submit"),
            st.integers(1, 6),
            st.integers(1, 9),
            st.sampled_from(["ensemble", "langevin", "score"]),
            st.booleans(),
        ),
        st.tuples(st.just("step"), st.floats(0.1, 3.0), st.integers(0, 5)),
        st.tuples(st.just("cancel"), st.integers(0, 50)),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(events=EVENTS, capacity=st.integers(1, 8), max_batch=st.integers(1, 6))
def test_every_job_ends_exactly_once_and_nothing_leaks(events, capacity, max_batch):
    """Random arrivals, deadlines, failures, cancels: each job ends once, with the right reason; slots come back."""
    world = World(capacity=capacity, max_batch_rows=max_batch, max_waiting_rows=30)
    jobs, cancelled = [], set()
    for event in events:
        if event[0] == "submit":
            _, steps, rows, kind, hurried = event
            deadline = world.now + steps if hurried else None
            try:
                jobs.append(world.submit(steps, rows, kind=kind, guided=rows % 2 == 0, deadline=deadline))
            except Overloaded:
                assert world.batcher.admission.waiting_rows + rows > 30
            except DeadlineExceeded:
                assert hurried
        elif event[0] == "step":
            unlucky = event[2]
            world.step(event[1], fail=lambda row, unlucky=unlucky: Internal("x") if row.sample == unlucky + 4 else None)
        elif jobs:
            job = jobs[event[1] % len(jobs)]
            if world.batcher.end(job, Unavailable("gone"), "cancelled"):
                cancelled.add(job)
    world.run()
    assert set(world.ended) | cancelled == set(jobs)
    assert not set(world.ended) & cancelled
    for job, error in world.ended.items():
        if error is None:
            assert all(row.last and row.failure is None for row in job.rows)
        elif isinstance(error, DeadlineExceeded):
            assert job.deadline is not None
        else:
            assert isinstance(error, Internal)
    assert world.batcher.idle
    assert world.batcher.rows_in_flight == 0
    assert world.batcher.admission.waiting_rows == world.batcher.admission.waiting_bytes == 0
    assert sum(world.batcher.counters.rows_left.values()) >= len(jobs)


def test_kinds_share_the_device_by_time():
    """Sampling with cheap steps and Langevin with dear ones get the same device time while both have work."""
    world = World(max_batch_rows=1)
    for _ in range(40):
        world.submit(3)
        world.submit(3, kind="langevin")
    costs = {"ensemble": 1.0, "langevin": 3.0}
    used = Counter()
    for _ in range(60):
        batch = world.step(lambda batch: costs[batch.kind])
        used[batch.kind] += costs[batch.kind]
        assert abs(used["ensemble"] - used["langevin"]) <= 3.0


@pytest.mark.parametrize("other", [False, True])
def test_long_chains_of_before_do_not_keep_out_what_is_short(other: bool):
    """Rows that ended lately took a hundred steps each, alone in their batches; a request of more one-step rows than
    there are slots is judged by its own step, on an idle server as beside one more such chain."""
    world = World(capacity=4, max_batch_rows=4)
    for _ in range(3):
        world.submit(100)
        world.run()
    if other:
        world.submit(100)
    job = world.submit(1, rows=40, deadline=world.now + 200)
    world.run()
    assert world.ended[job] is None


def test_a_request_behind_full_slots_is_refused_where_its_wait_is_too_long():
    """Not only its own steps count: those of the rows that have the slots do, as fast as rows have ended lately."""
    world = World(capacity=4, max_batch_rows=4)
    world.submit(2)  # what a step costs
    world.run()
    for _ in range(4):
        world.submit(100, rows=4)
    for _ in range(150):
        world.step()
    with pytest.raises(DeadlineExceeded, match="predicted"):
        world.submit(1, rows=4, deadline=world.now + 20)


def test_idle_time_gives_no_credit():
    """A kind that had no work for long does not get the device to itself when it comes back."""
    world = World(max_batch_rows=1)
    world.submit(50)
    for _ in range(30):
        world.step()
    world.submit(20, kind="langevin")
    kinds = [world.step().kind for _ in range(10)]
    assert kinds.count("langevin") == kinds.count("ensemble") == 5


@pytest.mark.parametrize(("seconds_left", "first"), [(1e6, False), (0.8, True)])
def test_an_urgent_row_goes_first(seconds_left, first):
    """A row that must start soon to meet its deadline overtakes; one with time to spare takes its turn."""
    world = World(max_batch_rows=1)
    for _ in range(5):
        world.submit(4)
    world.step(seconds=0.1)
    job = world.submit(1, deadline=world.now + seconds_left)
    order = [world.step(seconds=0.1).rows[0].job for _ in range(6)]
    assert (order[0] is job) == first
    assert job in order


def test_nothing_starves():
    """However many rows of the highest priority keep arriving, a row of the lowest waits at most the stated bound.

    Every step takes 10 ms and one row; two high rows arrive per step, so the device never gets idle.
    """
    world = World(capacity=10_000, max_batch_rows=1)
    world.submit(1, priority=10)
    low = world.submit(1, priority=-10)
    asked = world.now
    while low not in world.ended:
        world.step(seconds=0.01, meanwhile=lambda: [world.submit(1, priority=10) for _ in range(2)])
        # Only rows that arrive within 2 s (20 levels of 0.1 s) are due before it: 400 of them, 10 ms each.
        assert world.now - asked <= 2.0 + 4.0 + 0.1
    assert world.now - asked > 2.0


@pytest.mark.parametrize("behind", [10, 1_000, 100_000])
def test_scheduling_does_not_look_at_the_queue_behind(behind):
    """The work of one step does not grow with the requests that wait: counted in comparisons of jobs, not in time."""
    world = World(capacity=4, max_waiting_rows=10**9, max_waiting_bytes=10**12)
    for _ in range(behind):
        world.submit(2)
    calls = 0
    original = world.batcher._ends_early

    def counted(*arguments):
        nonlocal calls
        calls += 1
        return original(*arguments)

    world.batcher._ends_early = counted
    for _ in range(10):
        world.step()
    assert calls <= 10 * 4 * 3
