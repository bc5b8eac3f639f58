"""The fault campaign: a small one on the real server, and that it notices each promise that a server breaks."""

from __future__ import annotations

import asyncio
import json
import os
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.cli import main
from bench.faults import campaign as campaign_module
from bench.faults.campaign import Campaign, PhaseResult, Server
from bench.faults.contents import draw_contents
from bench.faults.kinds import KINDS, Drawer
from bench.faults.malformed import garbage, mangled, with_unknown_fields
from bench.faults.oracle import Oracle, OracleError
from bench.faults.report import Bounds
from bench.faults.requests import INFER_STREAM, METHODS, SAMPLE, SCORE, STREAM, Request
from bench.faults.session import covered_bundles
from bench.footprint import Footprint, footprint
from models.samplers import available_samplers
from protos import fewstep_pb2 as pb
from protos import inference_pb2 as oip
from tests.bench.between import Tamper, between
from tests.conftest import ZOO
from tests.running import RunningServer


def test_a_small_campaign_keeps_every_promise(repository: Path, tmp_path: Path) -> None:
    """150 requests with every fault, models that come and go and a SIGTERM: nothing lost, hung or wrong."""
    arguments = ["faults", "--repository", str(repository), "--requests", "150", "--contents", "24", "--open", "12"]
    code = main([*arguments, "--output", str(tmp_path)])
    document = json.loads((tmp_path / "faults.json").read_text())
    assert document["broken"] == []
    assert code == 0
    assert set(document["broken_by_promise"].values()) == {0}
    assert document["sent"] > 150
    assert document["checked"] > 60
    kinds = {kind for phase in document["phases"] for kind in phase["codes"]}
    assert kinds >= {"call", "stream", "cancel", "killed client", "mangled", "diverging", "models: FAILED_PRECONDITION"}
    assert document["environment"]["cpu"]
    report = (tmp_path / "faults.md").read_text()
    assert "load average" in report
    assert "0 lost, 0 hung, 0 wrong" in report


# -- that it can fail -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def oracle(repository: Path) -> Oracle:
    return Oracle.load(covered_bundles(repository), ZOO)


@pytest.fixture
def drawer(oracle: Oracle) -> Drawer:
    return Drawer(draw_contents(oracle.cards, 12, seed=3), oracle.cards, random.Random(3))


@pytest.fixture
def broken(server: RunningServer, drawer: Drawer, oracle: Oracle) -> Callable[..., list[str]]:
    """Sends requests to the real server with a tamperer before it, and returns the promises that were broken."""

    def run(tamper: Tamper, requests: list[Request]) -> list[str]:
        with between(server.address, tamper) as address:
            where = Server(address, f"127.0.0.1:{server.app.metrics_port}")
            campaign = Campaign(where, drawer, oracle, open_requests=4)
            result = asyncio.run(campaign.send("test", requests, len(requests), lambda *_: None))
        return [f"{broken.promise} {broken.what}" for broken in result.broken]

    return run


def only(method: str, change: Callable[[list[bytes]], Iterable[bytes]]) -> Tamper:
    """Tampers with the answers to one method."""
    return lambda path, messages: change(messages) if path == method else messages


def untouched(path: str, messages: list[bytes]) -> list[bytes]:
    return messages


def native(drawer: Drawer, kind: type) -> Request:
    """A call for the first content of that kind whose answer is raw."""
    content = next(c for c in drawer.contents if isinstance(c.message, kind) and _is_raw(c.message))
    return drawer.call(content)


def _is_raw(message: object) -> bool:
    return not isinstance(message, pb.SampleRequest) or message.encoding == pb.RAW


def stream(drawer: Drawer) -> Request:
    call = native(drawer, pb.SampleRequest)
    return replace(call, method=STREAM, kind="stream")


def test_an_honest_server_breaks_nothing(broken: Callable[..., list[str]], drawer: Drawer) -> None:
    """Through a server between that changes nothing, every kind ends as it may."""
    requests = [drawer.call(content) for content in drawer.contents]
    requests += [drawer.draw(kind) for kind in KINDS if kind not in ("killed client", "never reads")]
    assert broken(untouched, requests) == []


def nudge(image: pb.Images) -> None:
    """One pixel of one image is off by a thousandth."""
    values = np.frombuffer(image.raw, "<f4").copy()
    values[len(values) // 2] += 1e-3
    image.raw = values.tobytes()


def test_a_wrong_pixel_is_noticed_and_the_request_named(broken: Callable[..., list[str]], drawer: Drawer) -> None:
    """A thousandth in one pixel of one answer is a wrong picture."""

    def change(messages: list[bytes]) -> list[bytes]:
        answer = pb.SampleResponse.FromString(messages[0])
        nudge(answer.images)
        return [answer.SerializeToString()]

    request = native(drawer, pb.SampleRequest)
    (found,) = broken(only(SAMPLE, change), [request])
    assert found.startswith(f"wrong #{request.number} call /fewstep.v1.Sampler/Sample: SampleRequest digits-")
    assert "off by 0.001" in found


def test_the_answer_to_another_request_is_noticed(broken: Callable[..., list[str]], drawer: Drawer) -> None:
    """Two callers who get each other's images are both told of."""
    first, second = (c for c in drawer.contents[:4] if c.samples), (c for c in reversed(drawer.contents) if c.samples)
    requests = [drawer.call(next(first)), drawer.call(next(second))]
    kept: list[bytes] = []

    def change(messages: list[bytes]) -> list[bytes]:
        kept.append(messages[0])
        return kept[:1]  # everybody gets the first one's

    assert [found.split()[0] for found in broken(only(SAMPLE, change), requests)] == ["wrong"]


def test_a_wrong_preview_is_noticed(broken: Callable[..., list[str]], drawer: Drawer) -> None:
    """Previews are compared too, each with the prediction of its step."""

    def change(messages: list[bytes]) -> list[bytes]:
        event = pb.SampleEvent.FromString(messages[0])
        values = np.frombuffer(event.preview.image.raw, "<f4") + np.float32(0.01)
        event.preview.image.raw = values.tobytes()
        return [event.SerializeToString(), *messages[1:]]

    (found,) = broken(only(STREAM, change), [stream(drawer)])
    assert found.startswith("wrong")
    assert "preview of step 1" in found


@pytest.mark.parametrize(
    ("change", "promise"),
    [
        (lambda messages: messages[:-1], "lost"),
        (lambda messages: [], "lost"),
        (lambda messages: [*messages, messages[-1]], "wrong"),
        (lambda messages: [messages[1], messages[0], *messages[2:]], "wrong"),
    ],
    ids=["no result", "nothing", "two results", "previews out of order"],
)
def test_a_stream_that_loses_or_doubles_messages_is_noticed(
    broken: Callable[..., list[str]], drawer: Drawer, change: Callable[[list[bytes]], list[bytes]], promise: str
) -> None:
    """A stream ends with its result, once, after previews in order."""
    request = drawer.draw("long stream")
    (found,) = broken(only(STREAM, change), [request])
    assert found.split()[:2] == [promise, f"#{request.number}"]


@pytest.mark.parametrize(
    ("change", "promise"), [(lambda messages: messages[:-1], "lost"), (lambda messages: messages[::-1], "wrong")]
)
def test_answers_of_a_stream_that_are_missing_or_swapped_are_noticed(
    broken: Callable[..., list[str]], drawer: Drawer, change: Callable[[list[bytes]], list[bytes]], promise: str
) -> None:
    """ModelStreamInfer answers each request, in their order."""
    request = next(r for r in iter(lambda: drawer.draw("infer stream"), None) if len(set(r.data)) == len(r.data) > 1)
    (found,) = broken(only(INFER_STREAM, change), [request])
    assert found.split()[0] == promise


def test_a_wrong_energy_and_a_wrong_p_value_are_noticed(broken: Callable[..., list[str]], drawer: Drawer) -> None:
    """Energies are the offline ones; p-values, percentiles and decisions those of the energies that came."""
    request = native(drawer, pb.ScoreRequest)

    def change(field: str) -> Tamper:
        def changed(messages: list[bytes]) -> list[bytes]:
            answer = pb.ScoreResponse.FromString(messages[0])
            values = getattr(answer.scores[0], field)
            values[0] = not values[0] if field == "out_of_distribution" else values[0] + 0.01 * (1 + abs(values[0]))
            return [answer.SerializeToString()]

        return only(SCORE, changed)

    for field in ("energy", "p_value", "percentile", "out_of_distribution"):
        (found,) = broken(change(field), [request])
        assert found.startswith("wrong"), field


def test_a_request_without_an_end_is_a_hang(broken: Callable[..., list[str]], drawer: Drawer) -> None:
    """A call that is never answered is told of when its patience is over, and the others go on."""
    release = threading.Event()

    def change(messages: list[bytes]) -> Iterator[bytes]:
        release.wait(20)
        yield from messages

    hung = replace(native(drawer, pb.SampleRequest), patience=1.0)
    other = native(drawer, pb.ScoreRequest)
    try:
        (found,) = broken(only(SAMPLE, change), [hung, other])
    finally:
        release.set()
    assert found.startswith(f"hung #{hung.number} call")


def test_a_code_that_the_fault_does_not_allow_is_noticed(broken: Callable[..., list[str]], drawer: Drawer) -> None:
    """An error in place of an answer, and an answer in place of an error."""

    def change(messages: list[bytes]) -> list[bytes]:
        raise RuntimeError("a bug of the server")

    (found,) = broken(only(SAMPLE, change), [native(drawer, pb.SampleRequest)])
    assert found.startswith("code")
    assert "UNKNOWN" in found
    answered = native(drawer, pb.SampleRequest)
    (found,) = broken(untouched, [replace(answered, allowed=frozenset(["INVALID_ARGUMENT"]))])
    assert found.startswith("code")
    assert "allowed: INVALID_ARGUMENT" in found


def test_rows_that_stay_in_flight_are_noticed(
    broken: Callable[..., list[str]], drawer: Drawer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its callers have gone, a server that still holds something of them is told of."""
    monkeypatch.setattr(campaign_module, "IDLE_SECONDS", 0.3)

    def change(messages: list[bytes]) -> list[bytes]:
        status = pb.GetServerStatusResponse.FromString(messages[0])
        status.rows_in_flight += 2
        return [status.SerializeToString()]

    (found,) = broken(only("/fewstep.v1.Models/GetServerStatus", change), [native(drawer, pb.SampleRequest)])
    assert found.endswith("the server holds 2 rows in flight")


def test_an_ending_that_is_missing_is_a_lost_request(server: RunningServer, drawer: Drawer, oracle: Oracle) -> None:
    """The ledger counts requests, not endings."""
    campaign = Campaign(Server(server.address, ""), drawer, oracle)
    result = PhaseResult("test")
    request = drawer.draw("call")
    campaign.judge(result, [request], {})
    assert [(broken.promise, broken.what) for broken in result.broken] == [("lost", f"{request.line()}: never ended")]


def test_a_bad_exit_code_breaks_the_stop(server: RunningServer, drawer: Drawer, oracle: Oracle) -> None:
    """The stop must end with 0; streams that have begun before it must end with their result."""

    async def signal() -> int:
        return 1

    campaign = Campaign(Server(server.address, ""), drawer, oracle, open_requests=4)
    result = asyncio.run(campaign.stop(signal, lambda *_: None))
    assert [(broken.promise, broken.what) for broken in result.broken] == [
        ("stop", "the server ended with code 1, not 0")
    ]
    assert result.codes["long stream"] == {"OK": 2}


def test_growth_beyond_its_bound_is_noticed() -> None:
    """Each of memory, threads and descriptors has its own bound."""
    start = Footprint(400_000_000, 20, 30)
    assert Bounds().grown(start, Footprint(430_000_000, 25, 30)) == []
    grown = Bounds().grown(start, Footprint(500_000_000, 60, 90))
    assert [broken.what.split()[0] for broken in grown] == ["rss_mb", "threads", "descriptors"]
    assert all(broken.promise == "growth" for broken in grown)


def test_a_footprint_is_of_a_living_process(tmp_path: Path) -> None:
    """Without /proc nothing is measured; a process that is gone is an error."""
    assert footprint(1, proc=tmp_path) is None
    mine = footprint(os.getpid())
    if mine is not None:
        assert mine.rss_bytes > 1e7
        assert mine.threads >= 1
        with pytest.raises(ProcessLookupError):
            footprint(2**22 + 1)


# -- what is drawn ---------------------------------------------------------------------------------


def test_the_same_seed_draws_the_same_requests(oracle: Oracle) -> None:
    """A request that broke a promise can be drawn again by its number."""

    def draw() -> list[tuple[str, tuple[bytes, ...]]]:
        drawer = Drawer(draw_contents(oracle.cards, 12, seed=5), oracle.cards, random.Random(5))
        return [(kind, drawer.draw(kind).data) for kind in KINDS for _ in range(5)]

    assert draw() == draw()


def test_contents_cover_both_apis_and_are_distinct(oracle: Oracle) -> None:
    """Samples and scores, native and Open Inference Protocol, every sampler and model."""
    contents = draw_contents(oracle.cards, 150, seed=0)
    assert {type(content.message) for content in contents} == set(METHODS)
    assert {content.model for content in contents} == set(oracle.cards)
    samplers = {native.sampler for c in contents for native in c.same if isinstance(native, pb.SampleRequest)}
    assert samplers == {sampler for card in oracle.cards.values() for sampler in available_samplers(card)}
    assert len({content.message.SerializeToString(deterministic=True) for content in contents}) == 150


def test_damage_is_damage(oracle: Oracle) -> None:
    """Garbage is of many lengths, mangled messages differ from the whole one, unknown fields change nothing known."""
    rng = random.Random(0)
    assert len({len(garbage(rng)) for _ in range(50)}) > 3
    message = pb.SampleRequest(model="digits-ddpm", steps=4, count=2, seed=9)
    torn = [mangled(rng, message, oracle.cards) for _ in range(50)]
    assert sum(data != message.SerializeToString() for data in torn) > 40
    more = oip.ModelInferRequest.FromString(with_unknown_fields(rng, oip.ModelInferRequest(id="x").SerializeToString()))
    more.DiscardUnknownFields()
    assert more == oip.ModelInferRequest(id="x")


def test_a_repository_without_its_checkpoint_is_refused(repository: Path, tmp_path: Path) -> None:
    """Without the checkpoint that a bundle was exported from, nothing could be checked: that is wrong usage."""
    with pytest.raises(OracleError, match="there is no checkpoint"):
        Oracle.load(covered_bundles(repository), tmp_path)
    assert main(["faults", "--repository", str(tmp_path)]) == 2
    assert main(["faults", "--repository", str(repository), "--requests", "0"]) == 2
    assert main(["faults", "--repository", str(repository), "--zoo", str(tmp_path)]) == 2
