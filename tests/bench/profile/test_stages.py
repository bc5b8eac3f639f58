"""Stages of a request: they add up, in whatever thread they were marked."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.profile.measure import Timed, in_turns
from bench.profile.result import stage_times
from bench.profile.stages import STAGES, Recorder, load_marks, stage_seconds


def test_stages_add_up_to_the_whole_call():
    """Each mark takes the time since the one before it; one that comes twice is added up."""
    marks = [("wire in", 1.0), ("network", 2.0), ("complete", 2.5), ("network", 4.5), ("update", 5.0)]
    seconds = stage_seconds(0.25, marks, 6.0)
    assert seconds["wire in"] == 0.75
    assert seconds["network"] == 3.0
    assert seconds["wire out"] == 1.0
    assert sum(seconds.values()) == pytest.approx(5.75)
    assert list(seconds) == [stage.name for stage in STAGES]


def test_marks_of_two_threads_may_come_out_of_order():
    """The time decides, not the order in which two threads wrote their marks down."""
    seconds = stage_seconds(0.0, [("wire in", 1.0), ("schedule", 2.0), ("admit", 1.5)], 3.0)
    assert (seconds["admit"], seconds["schedule"]) == (0.5, 0.5)


def test_marks_outside_of_the_call_are_refused():
    """Marks of another request, or of no stage, would make nonsense of the table."""
    with pytest.raises(ValueError, match="before"):
        stage_seconds(2.0, [("wire in", 1.0)], 3.0)
    with pytest.raises(ValueError, match="before"):
        stage_seconds(0.0, [("wire in", 4.0)], 3.0)
    with pytest.raises(ValueError, match="lunch"):
        stage_seconds(0.0, [("lunch", 1.0)], 3.0)


def test_a_recorder_marks_what_it_wraps_and_reads_it_back(tmp_path: Path):
    """Marks before and after a function's call, one list for each request."""
    clock = iter(range(100))
    recorder = Recorder(lambda: float(next(clock)))
    work = recorder.after(recorder.before(lambda value: value + 1, "gather"), "network")
    for _ in range(2):
        recorder.begin()
        assert work(1) == 2
        assert recorder.last == "network"
        recorder.end()
    recorder.save(tmp_path / "marks.json")
    first, second = load_marks(tmp_path / "marks.json")
    assert first == [("wire in", 0.0), ("gather", 1.0), ("network", 2.0)]
    assert second == [("wire in", 3.0), ("gather", 4.0), ("network", 5.0)]


def test_stage_times_are_percentiles_over_the_requests():
    """The share is of the mean request, and calls that nobody marked are an error."""
    calls = [Timed(0.0, 10.0, 5.0), Timed(10.0, 30.0, 5.0)]
    marks = [[("wire in", 1.0), ("network", 6.0)], [("wire in", 12.0), ("network", 17.0)]]
    stages = {stage.name: stage for stage in stage_times(calls, marks)}
    assert stages["network"].p50 == 5.0
    assert stages["wire out"].share == pytest.approx((4.0 + 13.0) / 30.0)
    assert sum(stage.share for stage in stages.values()) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="2 calls"):
        stage_times(calls, marks[:1])


def test_servers_are_asked_in_turns():
    """Each is asked as often as the other, round by round, and the first call of a round does not count."""
    asked = []

    def ask(name: str):
        def call() -> Timed:
            asked.append(name)
            return Timed(len(asked), len(asked) + 1.0, 0.25)

        return call

    left, right = in_turns([ask("a"), ask("b")], requests=7, rounds=2, pause=0.0)
    assert len(left) == len(right) == 7
    warm_up = 50
    assert "".join(asked[2 * warm_up :]) == "aaaabbbbaaaaabbbbb"
    assert {call.added for call in left} == {0.75}
