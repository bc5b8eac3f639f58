"""The log: one event a line whatever callers write, its fields, and its bound on failed calls."""

from __future__ import annotations

import contextvars
import json
import logging
from collections.abc import Callable

import pytest

from server.observability.call import CALL, Call, request_id_of
from server.observability.logs import (
    FailureLimit,
    JsonFormatter,
    TextFormatter,
    is_not_of_a_caller_that_left,
    printable,
)

EVIL = "a\nb\r\x1b[2J\x00\x85\u2028\u202e\ud800é 值"


def record(message: str = "hello", level: int = logging.INFO, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("server.test", level, "file", 1, "%s", (message,), None)
    made.__dict__.update(extra)
    return made


def during(call: Call, function: Callable[[], str]) -> str:
    """What a function gives in the context of a call."""

    def run() -> str:
        CALL.set(call)
        return function()

    return contextvars.Context().run(run)


def test_nothing_that_a_caller_writes_breaks_a_line():
    """Line breaks, control characters and marks that turn text around are shown as escapes; letters stay."""
    shown = printable(EVIL)
    assert shown.isprintable()
    assert shown.startswith("a\\nb\\r\\x1b[2J\\x00\\x85\\u2028\\u202e\\ud800")
    assert shown.endswith("é 值")


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_a_record_is_one_line(formatter: logging.Formatter):
    """Message, model and any other field cannot start a line of their own."""
    call = Call("id-1", "Sample", EVIL)
    line = during(call, lambda: formatter.format(record(EVIL, code="NOT_FOUND", seconds=0.25)))
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line


def test_json_tells_all_that_is_known():
    """Time in UTC, level, logger, message, and the fields of the call."""
    entry = json.loads(
        during(Call("id-1", "Sample", "m"), lambda: JsonFormatter().format(record(code="OK", seconds=0.5)))
    )
    assert entry.pop("time").endswith("+00:00")
    assert entry == {
        "level": "info", "logger": "server.test", "message": "hello",
        "request_id": "id-1", "rpc": "Sample", "model": "m", "code": "OK", "seconds": 0.5,
    }  # fmt: skip


def test_text_fields_cannot_be_forged_by_a_model_name():
    """A name with spaces and brackets is quoted."""
    call = Call("id-1", "Sample", "m code=OK]: fine [")
    line = during(call, lambda: TextFormatter().format(record(code="NOT_FOUND")))
    assert '[request_id=id-1 rpc=Sample model="m code=OK]: fine [" code=NOT_FOUND]: hello' in line


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_tracebacks_cannot_pass_for_other_lines(formatter: logging.Formatter):
    """The lines of an exception's text are indented, or part of the object."""
    try:
        raise RuntimeError("first\n2026-01-01 00:00:00 ERROR forged\r\x1b[2J")
    except RuntimeError as error:
        made = record()
        made.exc_info = (RuntimeError, error, error.__traceback__)
    lines = formatter.format(made).splitlines()
    assert all(line.startswith("    ") for line in lines[1:])
    assert any("forged" in line for line in lines)
    assert not any("\x1b" in line for line in lines)


def test_failed_calls_are_bounded_and_counted():
    """A flood gets a few lines a second; the next line says how many went without, and other events all pass."""
    now = [0.0]
    limit = FailureLimit(10, clock=lambda: now[0])
    assert sum(limit.filter(record(code="NOT_FOUND")) for _ in range(1000)) == 10
    assert all(limit.filter(record()) for _ in range(100))
    now[0] += 0.1
    late = record(code="NOT_FOUND")
    assert limit.filter(late)
    assert "left_out=990" in TextFormatter().format(late)


def test_callers_errors_do_not_use_up_those_of_the_server():
    """INTERNAL has a bound of its own."""
    limit = FailureLimit(10, clock=lambda: 0.0)
    for _ in range(1000):
        limit.filter(record(code="NOT_FOUND"))
    assert sum(limit.filter(record(code="INTERNAL", level=logging.ERROR)) for _ in range(1000)) == 10


@pytest.mark.parametrize("sent", ["a", "x" * 128, "!~", "0af7-65/19:cd=="])
def test_a_valid_request_id_is_kept(sent: str):
    """Up to 128 visible ASCII characters."""
    assert request_id_of([("other", "x"), ("x-request-id", sent)]) == sent


@pytest.mark.parametrize(
    "metadata",
    [None, [], [("x-request-id", "")], [("x-request-id", "x" * 129)], [("x-request-id", "a b")],
     [("x-request-id", "a\nb")], [("x-request-id", "é")], [("x-request-id", b"abc")],
     [("x-request-id", "a"), ("x-request-id", "b")]],
)  # fmt: skip
def test_any_other_request_id_is_replaced(metadata):
    """By one of the server's, new each time."""
    first, second = request_id_of(metadata), request_id_of(metadata)
    assert first != second
    assert len(first) == len(second) == 16


def test_a_caller_that_left_is_no_error_of_grpcs():
    """gRPC's traceback of a write to a caller that is gone is left out, and no other error of its."""

    class ExecuteBatchError(Exception):
        pass

    def of(logger: str, kind: type[Exception]) -> logging.LogRecord:
        return logging.LogRecord(logger, logging.ERROR, __file__, 1, "failed", (), (kind, kind(), None))

    assert not is_not_of_a_caller_that_left(of("grpc._cython.cygrpc", ExecuteBatchError))
    assert is_not_of_a_caller_that_left(of("grpc._cython.cygrpc", RuntimeError))
    assert is_not_of_a_caller_that_left(of("server.api.calls", ExecuteBatchError))
    assert is_not_of_a_caller_that_left(record())
