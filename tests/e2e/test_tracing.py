"""Traces from outside: what a collector gets from a real server, and that it gets nothing unasked."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from protos import fewstep_pb2 as pb
from server import app as app_module
from server.access.gate import exposures
from server.config import Config, ConfigError

from ..collector import Collector, attributes_of, running_collector
from ..conftest import ROOT
from ..running import UNCUT, RunningServer, running_server

SAMPLE = "fewstep.v1.Sampler/Sample"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running_collector() as collector:
        yield collector


def sample(**fields: Any) -> pb.SampleRequest:
    return pb.SampleRequest(**({"model": "digits-ddpm", "steps": 4, "seed": 1} | fields))


def within(span: Any, parent: Any) -> bool:
    slack = 1_000_000  # the parent's begin is read on another clock than its children's
    return (
        parent.start_time_unix_nano - slack <= span.start_time_unix_nano <= span.end_time_unix_nano
        and span.end_time_unix_nano <= parent.end_time_unix_nano + slack
    )


def test_a_call_its_wait_and_each_of_its_steps_are_spans(repository: Path, collector: Collector):
    """One tree with the callers' id and code, and for each step its network, its number, and rows beside others'."""
    with running_server(repository, otlp_endpoint=collector.endpoint) as server:
        server.sample(sample(count=3), metadata=(("x-request-id", "abc"),))
    (call,) = collector.named(SAMPLE)
    (queue,) = collector.named("queue")
    steps = collector.named("step")
    assert not call.parent_span_id
    assert all(span.trace_id == call.trace_id and span.parent_span_id == call.span_id for span in (queue, *steps))
    assert all(within(span, call) for span in (queue, *steps))
    assert queue.end_time_unix_nano <= steps[0].start_time_unix_nano + 1_000_000
    expected = {
        "rpc.system": "grpc",
        "rpc.service": "fewstep.v1.Sampler",
        "rpc.method": "Sample",
        "rpc.grpc.status_code": 0,
        "fewstep.request_id": "abc",
        "fewstep.model": "digits-ddpm",
        "fewstep.client": "127.0.0.1",
    }
    assert attributes_of(call) == expected
    assert attributes_of(queue) == {"fewstep.rows": 3}
    assert [attributes_of(step) for step in steps] == [
        {
            "fewstep.network": "denoiser",
            "fewstep.update": "ensemble",
            "fewstep.rows": 3,
            "fewstep.batch_rows": 3,
            "fewstep.step": number,
        }
        for number in (1, 2, 3, 4)
    ]
    assert collector.resource["service.name"] == "fewstep"


def test_rows_of_others_count_in_the_batch_only(repository: Path, collector: Collector):
    """Two calls that share batches have their own rows each, and the batch's."""
    with running_server(repository, otlp_endpoint=collector.endpoint, limits=UNCUT) as server:
        futures = [server.later(sample(steps=100, spacing="linear", count=10 + i)) for i in range(2)]
        for future in futures:
            future.result(60)
    steps = [attributes_of(step) for step in collector.named("step")]
    shared = [step for step in steps if step["fewstep.batch_rows"] == 21]
    assert {step["fewstep.rows"] for step in shared} == {10, 11}
    assert all(step["fewstep.rows"] <= step["fewstep.batch_rows"] for step in steps)
    assert len(steps) == 200


@pytest.mark.parametrize("flags", ["01", "00"])
def test_the_callers_trace_goes_on_and_its_choice_holds(repository: Path, collector: Collector, flags: str):
    """A sampled traceparent is continued, though no calls are to be traced by themselves; an unsampled one is not."""
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    ratio = 0.0 if flags == "01" else 1.0
    with running_server(repository, otlp_endpoint=collector.endpoint, trace_ratio=ratio) as server:
        server.sample(sample(), metadata=(("traceparent", f"00-{trace}-{parent}-{flags}"),))
    calls = collector.named(SAMPLE)
    assert [(call.trace_id.hex(), call.parent_span_id.hex()) for call in calls] == [(trace, parent)][: int(flags)]


def test_a_share_of_the_calls_is_traced(repository: Path, collector: Collector):
    """A ratio of one half traces some of fifty calls and not others."""
    with running_server(repository, otlp_endpoint=collector.endpoint, trace_ratio=0.5) as server:
        for _ in range(50):
            server.sample(sample(steps=1))
    assert 5 < len(collector.named(SAMPLE)) < 45


def test_malformed_parents_are_ignored(repository: Path, collector: Collector):
    """What is no traceparent starts a new trace, and the call is answered."""
    with running_server(repository, otlp_endpoint=collector.endpoint) as server:
        for value in ("", "x", "00-0-0-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"):
            server.sample(sample(steps=1), metadata=(("traceparent", value),))
    calls = collector.named(SAMPLE)
    assert len(calls) == 4
    assert not any(call.parent_span_id for call in calls)


def test_failures_are_told_apart(repository: Path, collector: Collector):
    """The caller's mistake has its code and text, and is no error of the server; the server's is one."""
    with running_server(repository, otlp_endpoint=collector.endpoint) as server:
        with pytest.raises(grpc.RpcError):
            server.sample(sample(steps=0))
        server.engine.close_admission()
        with pytest.raises(grpc.RpcError):
            server.sample(sample())
    mistake, refused = collector.named(SAMPLE)
    assert attributes_of(mistake)["rpc.grpc.status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert "steps" in attributes_of(mistake)["fewstep.error"]
    assert mistake.status.code == 0
    assert (refused.status.code, refused.status.message) == (2, "the server is draining")


def test_each_request_of_a_stream_has_its_own_span(repository: Path, collector: Collector):
    """Requests of a bidirectional stream are children of its call, with their own steps."""
    answers: list[Any] = []
    with (
        running_server(repository, otlp_endpoint=collector.endpoint) as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        client.start_stream(lambda result, error: answers.append(error or result))
        for seed in (1, 2):
            tensor = triton.InferInput("SEED", [1, 1], "UINT64")
            tensor.set_data_from_numpy(np.array([[seed]], dtype=np.uint64))
            client.async_stream_infer("digits-ddpm", [tensor], parameters={"steps": 2})
        client.stop_stream()
    assert len(answers) == 2
    (stream,) = collector.named("inference.GRPCInferenceService/ModelStreamInfer")
    requests = collector.named("ModelInfer")
    assert [request.parent_span_id for request in requests] == [stream.span_id] * 2
    parents = [step.parent_span_id for step in collector.named("step")]
    assert all(parents.count(request.span_id) == 2 for request in requests)


def test_a_call_that_is_cancelled_still_ends_its_spans(repository: Path, collector: Collector):
    """A caller that goes away leaves a call of code CANCELLED with the steps that were taken."""
    with running_server(repository, otlp_endpoint=collector.endpoint) as server:
        stream = server.stream(sample(steps=100, spacing="linear", count=64))
        for _ in range(2):  # a preview comes while its own step is being completed
            next(stream)
        stream.cancel()
        batcher = server.engine.batcher
        deadline = time.monotonic() + 20
        while (batcher.jobs or batcher.rows_in_flight) and time.monotonic() < deadline:
            threading.Event().wait(0.01)
    (call,) = collector.named("fewstep.v1.Sampler/SampleStream")
    assert attributes_of(call)["rpc.grpc.status_code"] == grpc.StatusCode.CANCELLED.value[0]
    assert 1 <= len(collector.named("step")) < 100


def test_a_collector_that_is_away_costs_no_call(repository: Path):
    """Calls are answered, and the server stops, though nothing takes the spans."""
    with running_server(repository, otlp_endpoint="http://127.0.0.1:1") as server:
        assert server.sample(sample()).nfe == 4


def test_without_the_option_nothing_of_opentelemetry_is_imported(repository: Path):
    """A server that does not trace needs no package of it."""
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from server.app import App\n"
        "from server.config import Config\n"
        f"app = App(Config(repository=Path({str(repository)!r}), port=0, metrics_port=0))\n"
        "async def main():\n"
        "    await app.start()\n"
        "    await app.stop()\n"
        "asyncio.run(main())\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_missing_extra_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch):
    """Without the packages the option is refused, and says what to install."""
    monkeypatch.setitem(sys.modules, "server.observability.tracing", None)
    with pytest.raises(ConfigError, match=r"otlp_endpoint: needs the extra otel"):
        app_module._open_tracing(Config(Path(), otlp_endpoint="http://localhost:4317"))


@pytest.mark.parametrize("url", ["", "localhost:4317", "http://localhost", "ftp://h:1", "http://:4317", "http://h:x"])
def test_a_malformed_endpoint_is_refused(url: str):
    """The endpoint names scheme, host and port."""
    with pytest.raises(ConfigError, match="otlp_endpoint"):
        Config(Path(), otlp_endpoint=url)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_a_ratio_out_of_range_is_refused(ratio: float):
    """A share is within 0 and 1."""
    with pytest.raises(ConfigError, match="trace_ratio"):
        Config(Path(), trace_ratio=ratio)


def test_traces_in_the_clear_are_an_exposure():
    """Operators are warned where traces leave the machine without TLS."""
    for url, warned in (("http://collector:4317", 1), ("https://collector:4317", 0), ("http://localhost:4317", 0)):
        assert len(exposures(Config(Path(), otlp_endpoint=url))) == warned


def test_a_server_without_traces_writes_no_steps_down(server: RunningServer):
    """No job of an untraced server carries a place for steps."""
    jobs = []
    submit = server.engine.submit
    server.engine.submit = lambda job: (jobs.append(job), submit(job))[1]  # type: ignore[method-assign]
    try:
        server.sample(sample())
    finally:
        del server.engine.submit
    assert [job.trace for job in jobs] == [None]
