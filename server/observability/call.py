"""The call that a task answers: its id and what else its log lines, errors and traces tell of it."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .tracing import CallTrace

REQUEST_ID = "x-request-id"
"""The metadata entry that callers may send and get back."""

MAX_REQUEST_ID = 128


@dataclass(slots=True)
class Call:
    """One call, or one request of a stream. rpc: the method's name. model: what the caller named, cut to a length.

    trace: where its spans come from; None where it is not traced.
    """

    request_id: str
    rpc: str
    model: str = ""
    trace: CallTrace | None = None


CALL: ContextVar[Call | None] = ContextVar("call", default=None)
"""The call that this task answers; None outside of calls."""


def request_id_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The caller's id where it sent one that can be passed on, else a new one.

    1 to 128 visible ASCII characters: nothing that could forge a log line or a header.
    """
    values = [value for key, value in metadata or () if key == REQUEST_ID]
    if len(values) == 1 and isinstance(values[0], str) and _is_valid(values[0]):
        return values[0]
    return secrets.token_hex(8)


def _is_valid(value: str) -> bool:
    return 1 <= len(value) <= MAX_REQUEST_ID and all("!" <= character <= "~" for character in value)
