"""Logging to stderr, one event a line of text or JSON, with the call that it belongs to."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic

from ..access.clients import CLIENT
from .call import CALL

FORMATS = ("text", "json")
FAILURES_PER_SECOND = 10


def configure(level: str, form: str) -> None:
    """Send the log of the whole process to stderr.

    level: debug, info, warning or error. form: one of `FORMATS`.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    if level != "debug":
        handler.addFilter(FailureLimit())
        handler.addFilter(is_not_of_a_caller_that_left)
    logging.basicConfig(level=level.upper(), handlers=[handler])


def is_not_of_a_caller_that_left(record: logging.LogRecord) -> bool:
    """gRPC logs a traceback at error where a caller leaves while a message is written to it, which is not an error."""
    kind = record.exc_info[0] if record.exc_info else None
    return not (record.name.startswith("grpc.") and kind is not None and kind.__name__ == "ExecuteBatchError")


def printable(text: str) -> str:
    """The text in one line: what cannot be seen, e.g. a line break, becomes its escape sequence.

    Callers choose parts of messages, and must not be able to write lines or move the cursor of whoever reads them.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class FailureLimit(logging.Filter):
    """Lets a bounded number of failed calls a second into the log; the next line says how many were left out.

    So that a flood of bad requests fills neither the disk nor the event loop's time. Errors of the server have a
    bound of their own, which the callers' errors do not use up.
    """

    def __init__(self, per_second: float = FAILURES_PER_SECOND, clock: Callable[[], float] = monotonic) -> None:
        super().__init__()
        self._per_second, self._clock = per_second, clock
        self._budgets: dict[int, tuple[float, float, int]] = {}  # by level: lines left, when that was, left out

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "code") or record.levelno < logging.INFO:
            return True
        now = self._clock()
        lines, before, left_out = self._budgets.get(record.levelno, (self._per_second, now, 0))
        lines = min(self._per_second, lines + (now - before) * self._per_second)
        if lines < 1:
            self._budgets[record.levelno] = (lines, now, left_out + 1)
            return False
        self._budgets[record.levelno] = (lines - 1, now, 0)
        record.left_out = left_out
        return True


class TextFormatter(logging.Formatter):
    """TIME LEVEL LOGGER [FIELD=VALUE ...]: MESSAGE. Lines of a traceback are indented, and so are told from others."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{key}={_word(value)}" for key, value in _fields(record).items())
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        head = f"{stamp},{record.msecs:03.0f} {record.levelname} {record.name}{f' [{fields}]' if fields else ''}"
        lines = [f"{head}: {printable(record.getMessage())}"]
        if record.exc_info:
            lines += [f"    {printable(line)}" for line in self.formatException(record.exc_info).splitlines()]
        return "\n".join(lines)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, ASCII only, so that nothing in it can break the line."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def _fields(record: logging.LogRecord) -> dict[str, str | float]:
    """What is known of the call that a record belongs to; formatters run in the task that logs."""
    fields: dict[str, str | float] = {}
    call, client = CALL.get(), CLIENT.get(None)
    if call is not None:
        fields["request_id"] = call.request_id
        if client is not None and client.name:
            fields["client"] = client.name
        fields["rpc"] = call.rpc
        if call.model:
            fields["model"] = call.model
        if call.trace is not None:
            fields["trace_id"] = call.trace.trace_id
    for name in ("code", "seconds", "left_out"):
        value = getattr(record, name, None)
        if value:
            fields[name] = round(value, 6) if isinstance(value, float) else value
    return fields


def _word(value: str | float) -> str:
    """A value that cannot be taken for another field: quoted where it is not one plain word."""
    text = printable(str(value))
    return text if text and not set(text) & set(' "[]=') else json.dumps(text, ensure_ascii=False)
