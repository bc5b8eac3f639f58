"""Slots of rows, and of the predictions that some rows keep."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidArgument

from .world import MODEL, World, program


def test_a_row_has_a_slot_for_each_prediction_that_it_keeps():
    """Three steps keep two predictions: of ten slots three rows have nine, the fourth waits until they are back."""
    world = World(capacity=10)
    job = world.submit(3, rows=4, kind="weighted")
    assert job.rows[0].program.kept_predictions == 2
    assert [len(world.step().rows) for _ in range(3)] == [3, 3, 3]
    assert [len(world.step().rows) for _ in range(3)] == [1, 1, 1]
    assert world.ended == {job: None}
    assert world.batcher.rows_in_flight == 0
    world.submit(1, rows=10)  # all are free again
    assert len(world.step().rows) == 10


def test_rows_without_predictions_wait_behind_those_whose_slots_are_not_there_yet():
    """Else small rows would take each slot as it comes free, and a large one might never begin."""
    world = World(capacity=4)
    first = world.submit(4, rows=3)
    world.step()
    large, small = world.submit(2, kind="weighted"), world.submit(1)
    for _ in range(3):
        assert {row.job for row in world.step().rows} == {first}
    assert {row.job for row in world.step().rows} == {large, small}


def test_a_row_that_needs_more_slots_than_there_are_is_refused():
    """By the name of what asks for them, and nothing of it stays behind."""
    world = World(capacity=4)
    with pytest.raises(
        InvalidArgument, match="weights: 4 predictions of a sample are to be kept, and there is room for 3"
    ):
        world.submit(5, kind="weighted")
    assert world.batcher.idle
    fits = world.submit(4, kind="weighted")
    world.run()
    assert world.ended == {fits: None}


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
            world.batcher.end(job, InvalidArgument("test", "cancelled"), "cancelled")
    world.run()
    assert world.batcher.rows_in_flight == 0
    whole = world.submit(8, kind="weighted")
    world.run()
    assert world.ended[whole] is None
    assert program(8, kind="weighted").kept_predictions == world.capacity - 1
    assert world.batcher.load_of(MODEL).in_flight == 0
