"""Slots of rows, and of the predictions that some rows keep."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidArgument, Unavailable

from .world import MODEL, World, program


def test_a_row_has_a_place_for_each_prediction_that_it_keeps():
    """Three steps keep two predictions: of ten places four rows have eight, the fifth waits until they are back."""
    world = World(capacity=10)
    job = world.submit(3, rows=6, kind="weighted")
    assert job.rows[0].program.kept_predictions == 2
    assert [len(world.step().rows) for _ in range(3)] == [5, 5, 5]
    assert [len(world.step().rows) for _ in range(3)] == [1, 1, 1]
    assert world.ended == {job: None}
    assert world.batcher.rows_in_flight == 0
    world.submit(3, rows=5, kind="weighted")  # all are free again
    assert len(world.step().rows) == 5


def test_rows_that_wait_for_places_of_predictions_hold_up_each_other_alone():
    """A large request with weights leaves the slots to others, and none with weights overtakes another."""
    world = World(capacity=8)
    large = world.submit(5, rows=8, kind="weighted")  # four predictions a row
    assert {row.job for row in world.step().rows} == {large}
    behind, plain = world.submit(2, kind="weighted"), world.submit(1, rows=3)
    assert [row.job for row in world.step().rows].count(plain) == 3
    assert world.ended == {plain: None}
    world.run()
    assert list(world.ended) == [plain, large, behind]


def test_whoever_keeps_predictions_is_not_starved_by_those_who_keep_none():
    """Slots go to whoever is due first, with predictions or without."""
    world = World(capacity=2)
    world.submit(4, rows=2)
    world.step()
    keeps = world.submit(2, kind="weighted")
    for _ in range(10):
        world.submit(1)
    taken = []
    while keeps not in world.ended:
        taken.append([row.job for row in world.step().rows])
    assert sum(job is not keeps for jobs in taken[3:] for job in jobs) <= 2


def test_a_row_that_keeps_more_than_there_is_room_for_is_refused():
    """By the name of what asks for it, and nothing of it stays behind."""
    world = World(capacity=4)
    with pytest.raises(
        InvalidArgument, match="weights: 5 predictions of a sample are to be kept, and there is room for 4"
    ):
        world.submit(6, kind="weighted")
    assert world.batcher.idle
    fits = world.submit(5, kind="weighted")
    world.run()
    assert world.ended == {fits: None}


def test_what_is_cancelled_while_it_waits_for_places_is_forgotten():
    """Before any of its rows was given one."""
    world = World(capacity=4)
    world.submit(5, kind="weighted")
    waits = world.submit(5, kind="weighted")
    world.batcher.end(waits, Unavailable("gone"), "cancelled")
    assert not world.batcher._models[MODEL].waited_for
    world.run()


KINDS = st.sampled_from(["ensemble", "weighted"])


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6), KINDS, st.booleans()), min_size=1, max_size=12), st.data()
)
def test_every_slot_comes_back(requests: list[tuple[int, int, str, bool]], data: st.DataObject):
    """Whatever is asked for, cancelled and failed: no slot is used twice (`World.step`), and none is lost."""
    world = World(capacity=8)
    for steps, rows, kind, cancelled in requests:
        job = world.submit(steps, rows, kind=kind)
        if data.draw(st.booleans()):
            world.step()
        if cancelled and not job.ended:
            world.batcher.end(job, Unavailable("gone"), "cancelled")
    world.run()
    assert world.batcher.rows_in_flight == 0
    whole, all_slots = world.submit(9, kind="weighted"), world.submit(1, rows=7)
    assert program(9, kind="weighted").kept_predictions == world.capacity
    assert len(world.step().rows) == 8
    world.run()
    assert world.ended[whole] is world.ended[all_slots] is None
    assert not world.batcher._models[MODEL].waited_for
