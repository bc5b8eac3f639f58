"""What a step adds to the metrics, and that callers cannot add names to them."""

from __future__ import annotations

import pytest

from models.program import Line, Program, assign
from server.config import Limits
from server.errors import Internal, StepFailed
from server.loop.engine import Engine
from server.loop.engines import Engines
from server.loop.runner import NetworkError
from server.observability.metrics import Metrics
from server.types import Batch, Job, ModelKey, Row

KEY = ModelKey("model", 1)
PROGRAM = Program(0.0, 1.0, (Line("network", updates=(assign(),)),))
NETWORK = {"model": "model", "network": "network"}


def metrics_of(**options) -> Metrics:
    return Metrics(Engines([Engine(Limits())]), "onnxruntime", lambda name: name == "model", **options)


def batch(rows: int) -> Batch:
    job = Job(KEY, lambda job, error: None)
    return Batch.of(KEY, "network", "ensemble", [Row(job, 0, i, PROGRAM) for i in range(rows)])


@pytest.mark.parametrize(("rows", "counted"), [(1, "1"), (2, "2"), (3, "4"), (33, "64"), (64, "64")])
def test_step_times_are_told_apart_by_batch_size(rows: int, counted: str):
    """Batches are counted with those of up to the next power of two, so that there are few."""
    metrics = metrics_of()
    metrics.observe_step(batch(rows), 0.5)
    found = metrics.registry.get_sample_value("fewstep_step_seconds_sum", {**NETWORK, "rows": counted})
    assert found == pytest.approx(0.5)


def test_occupancy_is_the_share_of_the_rows_that_might_have_been():
    """16 of 64 rows are a quarter."""
    metrics = metrics_of()
    quarter = batch(16)
    quarter.limit = 64
    metrics.observe_step(quarter, 0.1)
    assert metrics.registry.get_sample_value("fewstep_batch_occupancy_sum", NETWORK) == pytest.approx(0.25)


def test_padding_is_counted_where_batches_have_a_fixed_size():
    """Of a batch of 60 that was padded to 64 four rows are for nobody, of a wider one none."""
    metrics = metrics_of()
    padded = batch(60)
    padded.padding = 4
    metrics.observe_step(padded, 0.1)
    metrics.observe_step(batch(65), 0.1)
    assert metrics.registry.get_sample_value("fewstep_padding_rows_total", NETWORK) == 4


def test_divergence_is_told_from_steps_that_could_not_run():
    """Rows that became non-finite, and rows whose step failed, have reasons of their own."""
    metrics = metrics_of()
    ran = batch(5)
    ran.rows[0].failure = Internal("became non-finite")
    ran.rows[1].failure = ran.rows[2].failure = StepFailed("no memory")
    ran.failed = ran.rows[:3]
    metrics.observe_step(ran, 0.1)
    for reason, count in (("non-finite", 1), ("error", 2)):
        labels = {"model": "model", "reason": reason}
        assert metrics.registry.get_sample_value("fewstep_rows_failed_total", labels) == count


@pytest.mark.parametrize("error", [NetworkError("no memory"), RuntimeError("a bug")])
def test_the_engine_tells_them_apart(error: Exception):
    """Whatever a runner raises, its rows fail with an error of the step."""

    class Runner:
        capacity = 8

        def run(self, batch: Batch) -> None:
            raise error

    steps: list[Batch] = []
    engine = Engine(Limits(), on_step=lambda batch, seconds: steps.append(batch))
    engine.add_model(KEY, Runner())
    engine.start()
    job = Job(KEY, lambda job, error: None)
    job.rows = [Row(job, 0, 0, PROGRAM)]
    engine.submit(job)
    assert engine.drain(20)
    assert engine.stop()
    assert [type(row.failure) for ran in steps for row in ran.rows] == [StepFailed]


def test_names_that_no_model_has_are_counted_together():
    """A caller cannot grow the metrics by making names up."""
    metrics = metrics_of()
    for number in range(100):
        metrics.observe_call("Sample", f"made up {number}", "NOT_FOUND", 0.1)
    labels = {"rpc": "Sample", "model": "", "code": "NOT_FOUND"}
    assert metrics.registry.get_sample_value("fewstep_request_seconds_count", labels) == 100


def test_bounds_are_told():
    """Each limit of the configuration has its value, for panels and alarms to compare with."""
    metrics = metrics_of(limits=Limits(max_waiting_rows=7))
    assert metrics.registry.get_sample_value("fewstep_limit", {"name": "max_waiting_rows"}) == 7
    assert metrics.registry.get_sample_value("fewstep_limit", {"name": "step_seconds"}) == Limits().step_seconds
