"""Recorded arrivals: read, checked, stretched, replayed and written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.load import LoadPlan, run_load
from bench.load.run import schedule_of
from bench.load.trace import Replay, TraceError, read_trace, write_trace
from bench.mix import parse_mix
from bench.schedule import Bursts
from bench.targets import NativeTarget
from tests.bench.fake_server import FakeServer


def trace(tmp_path: Path, text: str) -> Replay:
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    return read_trace(path)


def test_a_trace_is_read_in_the_order_of_its_times(tmp_path: Path) -> None:
    """Lines may be out of order and empty; a request without a seed gets one by the load's."""
    replay = trace(
        tmp_path,
        '{"at": 2.0, "kind": "ddim:4:count=2"}\n\n'
        '{"at": 0.5, "kind": "score", "seed": 7}\n{"at": 1, "kind": "score"}\n',
    )
    assert replay.mix == "ddim:4:count=2=1,score=2"
    assert replay.rate == 1.5
    schedule = replay.schedule(replay.seconds, (), seed=3)
    assert schedule.at.tolist() == [0.5, 1.0, 2.0]
    assert [replay.kinds[kind] for kind in schedule.kind] == ["score", "score", "ddim:4:count=2"]
    assert schedule.seed[0] == 7
    again, other = replay.schedule(9, (), seed=3), replay.schedule(9, (), seed=4)
    assert again.seed.tolist() == schedule.seed.tolist()
    assert other.seed[0] == 7
    assert (other.seed[1:] != schedule.seed[1:]).all()


def test_a_trace_is_stretched_to_a_rate(tmp_path: Path) -> None:
    """At twice the rate it takes half the time; a shorter load takes the requests that fall into it."""
    replay = trace(tmp_path, "".join(f'{{"at": {at}, "kind": "score"}}\n' for at in (1, 2, 3, 4)))
    fast = replay.at_rate(2 * replay.rate)
    assert fast.schedule(fast.seconds, (), 0).at.tolist() == [0.5, 1.0, 1.5, 2.0]
    assert replay.schedule(2.5, (), 0).at.tolist() == [1, 2]
    with pytest.raises(ValueError, match="rate: must be positive"):
        replay.at_rate(0)
    at_once = trace(tmp_path, '{"at": 0, "kind": "score"}\n' * 3)
    assert (at_once.rate, len(at_once.schedule(at_once.seconds, (), 0))) == (3, 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no request"),
        ("\n \n", "holds no request"),
        ('{"at": 0, "kind": "score"}\nat 1\n', "line 2: JSON is malformed"),
        ('{"at": 0, "kind": "score"}\n{"kind": "score"}\n', "line 2: .*`at`"),
        ('{"at": -1, "kind": "score"}\n', r"line 1: .*>= 0.*\$\.at"),
        ('{"at": 1e9, "kind": "score"}\n', r"line 1: .*<= 3600.*\$\.at"),
        ('{"at": 1e999, "kind": "score"}\n', "line 1: "),
        ('{"at": "0", "kind": "score"}\n', r"line 1: Expected `float`, got `str` - at `\$\.at`"),
        ('{"at": 0, "kind": "score", "sed": 1}\n', "line 1: .*`sed`"),
        ('{"at": 0, "kind": "score", "seed": 9007199254740992}\n', r"line 1: .*\$\.seed"),
        ('{"at": 0, "kind": "ddim"}\n', "line 1: 'ddim': the steps after 'ddim' must be"),
        ('{"at": 0, "kind": "ddim:4:m"}\n', "line 1: 'ddim:4:m': option m has no value"),
        ('{"at": 0, "kind": "score,ddim:4"}\n', "line 1: .*'score,ddim"),
        ('{"at": 0, "kind": "ddim:4:form=a,b"}\n', "line 1: one kind is expected, got 'ddim:4:form=a,b'"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, said: str) -> None:
    """Whoever wrote the trace sees which line is wrong, and how."""
    with pytest.raises(TraceError, match=f"trace .*trace.jsonl: {said}"):
        trace(tmp_path, text)


def test_a_trace_that_is_not_there(tmp_path: Path) -> None:
    """The message names the file."""
    with pytest.raises(TraceError, match=r"none\.jsonl: No such file"):
        read_trace(tmp_path / "none.jsonl")


def test_what_was_written_is_what_was_sent(fake: FakeServer, tmp_path: Path) -> None:
    """A load written as a trace and replayed sends the same requests at the same times."""
    plan = LoadPlan("ddim:1=1,score:images=2=1", Bursts(100, 4), duration=0.5, warmup=0, seed=5)
    kinds = parse_mix(plan.mix)
    schedule = schedule_of(plan, kinds)
    write_trace(tmp_path / "traces" / "bursts.jsonl", kinds, schedule)
    replay = read_trace(tmp_path / "traces" / "bursts.jsonl")
    replayed = replay.schedule(replay.seconds, (), seed=0)
    np.testing.assert_array_equal(replayed.at, schedule.at)
    np.testing.assert_array_equal(replayed.seed, schedule.seed)
    _, outcomes = run_load(LoadPlan(replay.mix, replay, replay.seconds, warmup=0), NativeTarget(fake.address))
    assert sorted(request.seed for request in fake.requests) == sorted(schedule.seed.tolist())
    assert [outcome.scheduled for outcome in outcomes] == schedule.at.tolist()
