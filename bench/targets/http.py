"""Servers of plain HTTP, for peers without gRPC.

- Samples: POST /sample, a JSON object of model, sampler, steps, seeds (one a sample), labels (one a sample, or null)
  and, under their names, the other options that the mix gives. The answer is the images, as little-endian float32.
- Scores: POST /score?model=NAME&rows=N, the images as little-endian float32. The answer is N energies, float64.

Both are `application/octet-stream` but for the JSON, with status 200 where all is well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import urlencode, urlsplit

import aiohttp
import msgspec
import numpy as np

from ..mix import Call, Kind, MixError
from .target import BAD_ANSWER, CONNECT_TIMEOUT, Answer, CallFailed, TargetError

MOST_CONNECTIONS = 1024
"""A request needs one for itself; further ones wait for it, within their latency."""
KEEP_ALIVE = 4.0
"""Seconds that an idle connection is kept: less than servers keep it (uvicorn 5), or a request would go into one that
is being closed."""


class _Message(NamedTuple):
    """rows: samples or energies that the answer must hold."""

    url: str
    body: bytes
    headers: Mapping[str, str]
    rows: int
    call: Call


class HttpTarget:
    """A server of plain HTTP. url: http://HOST:PORT. image_shape: (channels, height, width) of images to score."""

    def __init__(
        self,
        url: str,
        image_shape: tuple[int, int, int] | None = None,
        *,
        connect_timeout: float = CONNECT_TIMEOUT,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.netloc:
            raise ValueError(f"address: must be a URL as in http://127.0.0.1:8000, got {url!r}")
        self.name = "http"
        self.about: Mapping[str, str] = {}
        self.url = url.rstrip("/")
        self.image_shape = image_shape
        self._connect_timeout = connect_timeout
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=MOST_CONNECTIONS, keepalive_timeout=KEEP_ALIVE),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,  # no proxy
        )
        try:
            timeout = aiohttp.ClientTimeout(total=self._connect_timeout)
            async with self._session.get(self.url, timeout=timeout) as response:  # of any status
                self.about = {"server": response.headers.get("Server", "")}
        except (aiohttp.ClientError, TimeoutError) as error:
            await self._session.close()
            raise TargetError(f"{self.url}: no HTTP server answers: {error or type(error).__name__}") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def prepare(self, kinds: Sequence[Kind]) -> tuple[Kind, ...]:
        for kind in kinds:
            if kind.call is Call.INFER:
                raise MixError(f"{kind.name!r}: a server of plain HTTP cannot be asked for a model's inputs")
            if not kind.model:
                raise MixError(f"{kind.name!r}: a server of plain HTTP lists no models, name one with model=")
            if kind.call is Call.SCORE and self.image_shape is None:
                raise MixError(f"{kind.name!r}: needs the shape of its images, --image-shape")
        return tuple(kinds)

    def message(self, kind: Kind, seed: int) -> _Message:
        noise = np.random.Generator(np.random.PCG64(seed))
        if kind.call is Call.SCORE:
            images = noise.uniform(-1.0, 1.0, (kind.rows, *(self.image_shape or ()))).astype("<f4")
            query = urlencode({"model": kind.model, "rows": kind.rows})
            headers = {"Content-Type": "application/octet-stream"}
            return _Message(f"{self.url}/score?{query}", images.tobytes(), headers, kind.rows, kind.call)
        options = {name: value for name, value in kind.options.items() if name not in ("count", "labels")}
        labels = kind.options.get("labels")
        request = {
            "model": kind.model,
            "sampler": kind.sampler,
            "seeds": noise.integers(2**53, size=kind.rows).tolist(),
            "labels": labels * kind.rows if labels is not None and len(labels) == 1 else labels,
            **options,
        }
        headers = {"Content-Type": "application/json"}
        return _Message(f"{self.url}/sample", msgspec.json.encode(request), headers, kind.rows, kind.call)

    async def call(self, message: _Message, within: float) -> Answer:
        try:
            async with self._session.post(
                message.url, data=message.body, headers=message.headers, timeout=aiohttp.ClientTimeout(total=within)
            ) as response:
                content = await response.read()
        except TimeoutError as error:
            raise CallFailed("DEADLINE_EXCEEDED") from error
        except aiohttp.ClientError as error:
            raise CallFailed("UNAVAILABLE") from error
        if response.status != 200:
            raise CallFailed(f"HTTP_{response.status}")
        if message.call is Call.SCORE:
            good = len(content) == 8 * message.rows
        else:
            good = len(content) > 0 and len(content) % (4 * message.rows) == 0
        if not good:
            raise CallFailed(BAD_ANSWER)
        return Answer(rows=message.rows)
