"""The campaign: phases of requests on one server, each followed by a look at what the server still holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import grpc
import grpc.aio

from bench.footprint import Footprint, footprint
from bench.metrics_page import read_metrics, total
from protos import fewstep_pb2 as pb
from protos import fewstep_pb2_grpc as rpc

from .calls import OPTIONS, Caller, Ending
from .keeper import Keeper
from .kinds import Drawer
from .oracle import Oracle
from .requests import Request
from .verdicts import Broken, Verdicts

IDLE_SECONDS = 20.0
"""Within which nothing may be left of requests whose callers all have their end."""
NOT_ADMITTED = frozenset(["UNAVAILABLE", "CANCELLED"])
"""How requests may end that came during the stop. gRPC itself cancels those that had reached the process and no handler
yet when it shuts down."""
REFUSED_PAUSE = 0.25
"""Seconds that a caller waits whom a stopping server has refused."""

Progress = Callable[[str, int, int], None]
"""Told of a phase by name, its requests done and its requests in all."""


@dataclass(frozen=True)
class Phase:
    """A share of the campaign's requests, and the weights of their kinds. keeper: models come and go meanwhile."""

    name: str
    share: float
    kinds: Mapping[str, float]
    keeper: bool = False


NO_FAULT = {"call": 6.0, "stream": 2.0, "infer stream": 1.0, "unknown fields": 0.5}
LEAVERS = {
    "cancel": 3.0,
    "cancel stream": 2.0,
    "hopeless deadline": 1.5,
    "tight deadline": 1.5,
    "generous deadline": 1.0,
    "own timeout": 1.0,
}
NONSENSE = {"garbage": 1.0, "mangled": 2.0, "wrong type": 0.5, "refused": 2.0, "poisoned": 1.5, "diverging": 0.5}
CLIENTS = {"slow reader": 1.0, "never reads": 1.0, "killed client": 0.5, "connections": 0.5}
NEIGHBOURS = {"call": 3.0, "stream": 0.5}
"""Among every fault, requests without one: they must not notice."""

PHASES = (
    Phase("calls", 0.2, NO_FAULT),
    Phase("callers that leave", 0.25, NEIGHBOURS | LEAVERS),
    Phase("nonsense", 0.2, NEIGHBOURS | NONSENSE),
    Phase("bad clients", 0.05, NEIGHBOURS | CLIENTS),
    Phase("models come and go", 0.15, NEIGHBOURS | {"pinned": 1.5, "cancel stream": 0.5, "refused": 0.3}, keeper=True),
    Phase(
        "everything at once",
        0.15,
        NO_FAULT | LEAVERS | NONSENSE | {kind: weight / 5 for kind, weight in CLIENTS.items()} | {"pinned": 1.0},
        keeper=True,
    ),
)


@dataclass
class PhaseResult:
    """What came of a phase.

    codes: endings by kind and code. checked: requests whose answers were compared with the offline result.
    idle_seconds: until nothing of them was left. slowest: the request that took the longest. holds: the process
    afterwards.
    """

    name: str
    seconds: float = 0.0
    codes: dict[str, dict[str, int]] = field(default_factory=dict)
    checked: int = 0
    broken: list[Broken] = field(default_factory=list)
    idle_seconds: float = 0.0
    slowest_seconds: float = 0.0
    slowest: str = ""
    holds: Footprint | None = None

    @property
    def requests(self) -> int:
        """All that were sent."""
        return sum(sum(codes.values()) for codes in self.codes.values())

    def add(self, request: Request, ending: Ending, broken: Broken | None) -> None:
        """Count one ending."""
        codes = self.codes.setdefault(request.kind, {})
        codes[ending.code] = codes.get(ending.code, 0) + 1
        self.checked += ending.code == "OK" and bool(ending.answers) and request.method not in _UNCHECKED
        if ending.seconds > self.slowest_seconds:
            self.slowest_seconds, self.slowest = ending.seconds, request.line()
        if broken is not None:
            self.broken.append(broken)


_UNCHECKED = frozenset(f"/fewstep.v1.Models/{method}Model" for method in ("Load", "Unload", "Reload"))


@dataclass(frozen=True)
class Server:
    """Where a server is. pid: of its process, to look at what it holds; None: not to look."""

    address: str
    metrics_address: str
    pid: int | None = None


class Campaign:
    """Requests to one server, judged. open_requests: how many are under way at a time."""

    def __init__(self, server: Server, drawer: Drawer, oracle: Oracle, *, open_requests: int = 24) -> None:
        self._server = server
        self._drawer = drawer
        self._verdicts = Verdicts(oracle)
        self._open_requests = open_requests

    async def warm_up(self, keeper: Keeper | None, progress: Progress) -> PhaseResult:
        """Every content and every fault once: afterwards the server has all that it keeps for good."""
        requests = [self._drawer.call(content) for content in self._drawer.contents]
        requests += [self._drawer.draw(kind) for kind in sorted(LEAVERS | NONSENSE | CLIENTS)]
        return await self._kept_and_sent("warm-up", requests, len(requests), keeper, progress)

    async def phase(self, phase: Phase, count: int, keeper: Keeper | None, progress: Progress) -> PhaseResult:
        """`count` requests of a phase."""
        kinds, weights = list(phase.kinds), list(phase.kinds.values())
        chosen = self._drawer.rng.choices(kinds, weights, k=count)
        requests = (self._drawer.draw(kind) for kind in chosen)  # as they are sent: versions come and go
        return await self._kept_and_sent(phase.name, requests, count, keeper if phase.keeper else None, progress)

    async def _kept_and_sent(
        self, name: str, requests: Iterable[Request], count: int, keeper: Keeper | None, progress: Progress
    ) -> PhaseResult:
        """Requests beside a keeper, who does as many rounds as fit beside them, one a model at least."""
        if keeper is None:
            return await self.send(name, requests, count, progress)
        kept: list[tuple[Request, Ending]] = []
        models = sorted({content.model for content in self._drawer.contents})
        over = asyncio.Event()

        async def keep() -> None:
            while not (kept and over.is_set()):
                for model in models:
                    kept.extend([ended async for ended in self._kept(keeper, model)])

        keeping = asyncio.ensure_future(keep())
        try:
            result = await self.send(name, requests, count, progress)
        finally:
            over.set()
            await keeping
        for request, ending in kept:
            result.add(request, ending, self._verdicts.broken(request, ending))
        await self._await_idle(result)
        return result

    async def _kept(self, keeper: Keeper, name: str) -> AsyncIterator[tuple[Request, Ending]]:
        async with Caller(self._server.address) as caller:
            for prepare, request in keeper.round(name):
                # In their order: each step is drawn when the one before it has ended.
                await asyncio.to_thread(prepare)
                yield request, await caller.send(request)

    async def send(self, name: str, requests: Iterable[Request], count: int, progress: Progress) -> PhaseResult:
        """Send `count` requests, judge their endings, and wait until the server holds nothing of them."""
        started = time.monotonic()
        sent: list[Request] = []
        endings: dict[int, Ending] = {}
        async with Caller(self._server.address) as caller:
            waiting = iter(requests)

            async def work() -> None:
                for request in waiting:
                    sent.append(request)
                    endings[request.number] = await caller.send(request)
                    progress(name, len(endings), count)

            await asyncio.gather(*(work() for _ in range(self._open_requests)))
        result = PhaseResult(name, seconds=time.monotonic() - started)
        self.judge(result, sent, endings)
        await self._await_idle(result)
        return result

    def judge(self, result: PhaseResult, requests: Iterable[Request], endings: Mapping[int, Ending]) -> None:
        """Add every request's ending, and what it broke, to the result."""
        for request in requests:
            ending = endings.get(request.number)
            if ending is None:
                result.broken.append(Broken("lost", f"{request.line()}: never ended"))
            else:
                result.add(request, ending, self._verdicts.broken(request, ending))

    async def _await_idle(self, result: PhaseResult) -> None:
        """Nothing of the requests may be left in the server, soon after their ends."""
        started = time.monotonic()
        left = await held(self._server)
        while left and time.monotonic() - started < IDLE_SECONDS:
            await asyncio.sleep(0.05)
            left = await held(self._server)
        result.idle_seconds = time.monotonic() - started
        if left:
            what = ", ".join(f"{value:g} {name}" for name, value in left.items())
            result.broken.append(Broken("idle", f"{IDLE_SECONDS:g} s after {result.name} the server holds {what}"))
        if self._server.pid is not None:
            result.holds = footprint(self._server.pid)

    # -- the stop -----------------------------------------------------------------------------------

    async def stop(self, signal: Callable[[], Awaitable[int]], progress: Progress) -> PhaseResult:
        """SIGTERM amid traffic: streams that have begun get their result, other requests an answer or a refusal.

        signal: sends it, and returns the exit code.
        """
        name, started = "SIGTERM amid traffic", time.monotonic()
        begun = [self._drawer.draw("long stream") for _ in range(self._open_requests // 2)]
        others: list[Request] = []
        endings: dict[int, Ending] = {}
        ended = asyncio.Event()
        async with Caller(self._server.address) as caller, Caller(self._server.address) as other_caller:
            shown = [asyncio.Event() for _ in begun]

            async def stream(request: Request, shown: asyncio.Event) -> None:
                endings[request.number] = await caller.send(request, on_first=shown.set)
                shown.set()

            async def work() -> None:
                while not ended.is_set():
                    request = self._drawer.draw("call")
                    others.append(replace(request, allowed=request.allowed | NOT_ADMITTED))
                    ending = endings[request.number] = await other_caller.send(request)
                    progress(name, len(endings), len(begun) + len(others))
                    if ending.code == "UNAVAILABLE":
                        await asyncio.sleep(REFUSED_PAUSE)

            async def stop() -> int:
                for each in shown:
                    await each.wait()
                try:
                    return await signal()
                finally:
                    ended.set()

            code, *_ = await asyncio.gather(
                stop(), *map(stream, begun, shown), *(work() for _ in range(self._open_requests))
            )
        result = PhaseResult(name, seconds=time.monotonic() - started)
        self.judge(result, [*begun, *others], endings)
        if code != 0:
            result.broken.append(Broken("stop", f"the server ended with code {code}, not 0"))
        return result


async def held(server: Server) -> dict[str, float]:
    """What a server still has of requests, by name; empty where it is idle."""
    async with grpc.aio.insecure_channel(server.address, options=OPTIONS) as channel:
        status = await rpc.ModelsStub(channel).GetServerStatus(pb.GetServerStatusRequest(), timeout=IDLE_SECONDS)
    page = await asyncio.to_thread(read_metrics, server.metrics_address)
    found = {
        "rows in flight": status.rows_in_flight,
        "requests open": status.requests_open,
        "rows waiting": total(page, "fewstep_rows_waiting"),
        "bytes waiting": total(page, "fewstep_bytes_waiting"),
    }
    return {name: value for name, value in found.items() if value}
