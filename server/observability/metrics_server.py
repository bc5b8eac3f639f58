"""The metrics port: /metrics for Prometheus, / for people, /status.json for their programs; plain HTTP, threaded."""

from __future__ import annotations

import gzip
import logging
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from socketserver import ThreadingTCPServer
from typing import NamedTuple
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted

from ..config import is_loopback

log = logging.getLogger(__name__)

CLIENT_SECONDS = 10.0
"""How long a request may take to arrive, and an answer to be taken."""


class Page(NamedTuple):
    """What a path gives. headers: more than those that all pages have."""

    content_type: str
    body: bytes
    headers: Mapping[str, str] = {}


class MetricsServer:
    """Answers on the metrics port from `start` to `stop`."""

    def __init__(
        self, host: str, port: int, registry: CollectorRegistry, pages: Mapping[str, Callable[[], Page]]
    ) -> None:
        """pages: by path, called in threads of their own.

        Raises:
            OSError: cannot listen there.
        """

        handler = type("Handler", (_Handler,), {"registry": registry, "pages": pages, "local": is_loopback(host)})
        self._server = _listen(host.removeprefix("[").removesuffix("]"), port, handler)
        self.address: tuple[str, int] = self._server.server_address[:2]  # type: ignore[assignment]
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _listen(host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> ThreadingTCPServer:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]

    class Server(ThreadingTCPServer):
        address_family = family
        allow_reuse_address = True
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            if not isinstance(sys.exception(), OSError):  # a reader that goes away is no event
                log.exception("a page of the metrics port failed")

    return Server((host, port), handler)


class _Handler(BaseHTTPRequestHandler):
    registry: CollectorRegistry
    pages: Mapping[str, Callable[[], Page]]
    local: bool
    timeout = CLIENT_SECONDS
    server_version = "fewstep"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if self.local and not _is_local_name(self.headers.get("Host", "")):
            # A web site whose name has been made to point here must not read these pages in a visitor's browser.
            self._refuse(HTTPStatus.FORBIDDEN, "this port answers to localhost and to addresses, not to names")
        elif path == "/metrics":
            self._answer(HTTPStatus.OK, self._metrics())
        elif path in self.pages:
            self._answer(HTTPStatus.OK, self.pages[path]())
        else:
            self._refuse(HTTPStatus.NOT_FOUND, f"there are: /metrics {' '.join(self.pages)}")

    do_HEAD = do_GET

    def _not_allowed(self) -> None:
        self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, "GET or HEAD", {"Allow": "GET, HEAD"})

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _not_allowed

    def _metrics(self) -> Page:
        encoder, content_type = choose_encoder(self.headers.get("Accept", ""))
        body = encoder(self.registry)
        if gzip_accepted(self.headers.get("Accept-Encoding", "")):
            return Page(content_type, gzip.compress(body, 1), {"Content-Encoding": "gzip"})
        return Page(content_type, body)

    def _refuse(self, status: HTTPStatus, text: str, headers: Mapping[str, str] = {}) -> None:
        self._answer(status, Page("text/plain; charset=utf-8", f"{text}\n".encode(), headers))

    def _answer(self, status: HTTPStatus, page: Page) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": page.content_type,
            "Content-Length": str(len(page.body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
            **page.headers,
        }
        for header, value in headers.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page.body)

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are no events."""


def _is_local_name(host: str) -> bool:
    """Whether a Host header names this machine as only itself would: localhost or an address, with or without port."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name in ("", "localhost") or bool(ip_address(name))
    except ValueError:
        return False
