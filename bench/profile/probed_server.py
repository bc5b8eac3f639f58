"""A server that writes down when its requests' stages end: `python -m bench.profile.probed_server FILE OPTION...`.

The options are those of `python -m server`. The functions at the borders of the stages are wrapped from outside, so
that the server itself carries no probes; one that is not there any more is an error here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from export.runtime.onnxruntime import OnnxSession
from server.access.gate import Gate
from server.api import calls, observed
from server.cli import main
from server.loop import engine, runner

from .stages import Recorder


def install(recorder: Recorder) -> None:
    """Put the marks in; once a process, before the server is built."""
    _wrap(calls, "_deserializer", lambda make: lambda method: _parser(recorder, make(method)))
    _wrap(observed.Observed, "__init__", lambda function: recorder.before(function, "dispatch"))
    _wrap(Gate, "enter", lambda function: recorder.after(function, "observe"))
    _wrap(calls.PendingJob, "done", lambda function: _submission(recorder, function))
    _wrap(engine.Engine, "submit", lambda function: _admission(recorder, function))
    _wrap(engine.Engine, "_run_at_once", lambda function: recorder.before(function, "admit"))
    _wrap(runner.ModelRunner, "run", lambda function: _step(recorder, function))
    _wrap(OnnxSession, "run", lambda function: recorder.after(recorder.before(function, "gather"), "network"))
    _wrap(calls.PendingJob, "on_done", lambda function: recorder.before(function, "complete"))
    _wrap(calls.PendingJob, "_end", lambda function: recorder.before(function, "wake loop"))
    _wrap(observed.Observed, "__exit__", lambda function: _end(recorder, function))


def _wrap(owner: Any, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    setattr(owner, name, wrapper(getattr(owner, name)))


def _parser(recorder: Recorder, parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def marked(data: bytes) -> Any:
        recorder.begin()
        message = parse(data)
        recorder.mark("parse")
        return message

    return marked


def _submission(recorder: Recorder, done: Callable[..., Any]) -> Callable[..., Any]:
    async def marked(*arguments: Any) -> None:
        recorder.mark("prepare")
        await done(*arguments)
        recorder.mark("resume")

    return marked


def _admission(recorder: Recorder, submit: Callable[..., Any]) -> Callable[..., Any]:
    """A request that was run at once has been admitted for long when `submit` returns."""

    def marked(*arguments: Any) -> None:
        submit(*arguments)
        if recorder.last == "prepare":
            recorder.mark("admit")

    return marked


def _step(recorder: Recorder, run: Callable[..., float]) -> Callable[..., float]:
    def marked(*arguments: Any) -> float:
        recorder.mark("schedule" if recorder.last == "admit" else "complete")
        seconds = run(*arguments)
        recorder.mark("update")
        return seconds

    return marked


def _end(recorder: Recorder, leave: Callable[..., Any]) -> Callable[..., Any]:
    def marked(*arguments: Any) -> Any:
        recorder.mark("respond")
        result = leave(*arguments)
        recorder.mark("account")
        recorder.end()
        return result

    return marked


if __name__ == "__main__":
    written = Path(sys.argv.pop(1))
    marks = Recorder()
    install(marks)
    try:
        sys.exit(main())
    finally:
        marks.save(written)
