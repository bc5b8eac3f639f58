"""Whether a request ended as it may, and whether what it was answered with is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from models.bundle import BundleError
from models.samplers import OptionError, UnsupportedError
from protos import fewstep_pb2 as pb
from protos import inference_pb2 as oip

from .calls import Ending
from .contents import Content, Native
from .oracle import Expected, Oracle, differs, images_differ
from .requests import HUNG, INFER, INFER_STREAM, SAMPLE, SCORE, STREAM, Request

LOST, WRONG, CODE = "lost", "wrong", "code"


@dataclass(frozen=True)
class Broken:
    """A promise that was broken. promise: lost, hung, wrong, code, idle, growth or stop. what: by whom, and how."""

    promise: str
    what: str


class Verdicts:
    """Judges endings by an oracle."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle

    def broken(self, request: Request, ending: Ending) -> Broken | None:
        """The first promise that this request broke, or None."""
        if ending.code == HUNG:
            return Broken("hung", f"{request.line()}: {ending.detail}")
        if ending.code not in request.allowed:
            allowed = ", ".join(sorted(request.allowed))
            return Broken(CODE, f"{request.line()}: ended {ending.code} ({ending.detail}), allowed: {allowed}")
        if request.says and request.says not in ending.detail:
            return Broken(CODE, f"{request.line()}: {ending.code} ({ending.detail}) does not name {request.says!r}")
        if ending.code == "INTERNAL":
            return self._internal(request, ending)
        if ending.code != "OK":
            return None
        judge: dict[str, Callable[[Request, Ending], Iterator[tuple[str, str]]]] = {
            SAMPLE: self._unary,
            SCORE: self._unary,
            INFER: self._unary,
            STREAM: self._stream,
            INFER_STREAM: self._infer_stream,
        }
        if request.method not in judge:
            return None  # what it did shows in the requests that follow
        promise, what = next(judge[request.method](request, ending), ("", ""))
        return Broken(promise, f"{request.line()}: {what}") if promise else None

    def _internal(self, request: Request, ending: Ending) -> Broken | None:
        """Right only where the offline loop diverges too, and the message says at which step."""
        native = _native(request)
        if native is None or "non-finite at step" not in ending.detail:
            return Broken(CODE, f"{request.line()}: ended INTERNAL ({ending.detail})")
        if not native.HasField("seed"):
            native.seed = 0
        if self._oracle.expected(native).finite:
            return Broken(WRONG, f"{request.line()}: {ending.detail}; the offline loop stays finite")
        return None

    # -- each yields what is wrong as (promise, what) ----------------------------------------------

    def _unary(self, request: Request, ending: Ending) -> Iterator[tuple[str, str]]:
        if not ending.answers:
            yield LOST, "ended OK without an answer"
        for answer in ending.answers:
            yield from self._answer(request, answer)

    def _answer(self, request: Request, answer: Any) -> Iterator[tuple[str, str]]:
        """One answer, of a request whose content is known or can be read from its bytes."""
        if request.contents:
            yield from self._content(request.contents[0], answer)
            return
        native = _native(request)
        if native is None:
            yield WRONG, f"was answered, and is no request: {type(answer).__name__}"
            return
        if not native.HasField("seed"):
            native.seed = answer.seed
        try:
            yield from self._content(Content(native, (native,)), answer)
        except (OptionError, UnsupportedError, KeyError, BundleError) as error:
            yield WRONG, f"was answered, and should have been refused: {error}"

    def _content(self, content: Content, answer: Any) -> Iterator[tuple[str, str]]:
        expected = [self._oracle.expected(native) for native in content.same]
        if isinstance(answer, pb.SampleResponse):
            complaints = self._samples(content, expected[0], answer)
        elif isinstance(answer, pb.ScoreResponse):
            complaints = self._scores(content, expected[0], answer)
        else:
            complaints = self._inferred(content, expected, answer)
        yield from ((WRONG, complaint) for complaint in complaints)

    def _stream(self, request: Request, ending: Ending) -> Iterator[tuple[str, str]]:
        """Previews with increasing steps, each the offline one, and then the result, once."""
        content = request.contents[0]
        results = [event.result for event in ending.answers if event.WhichOneof("event") == "result"]
        previews = [event.preview for event in ending.answers if event.WhichOneof("event") == "preview"]
        streams = max(1, request.connections)
        if len(results) < streams:
            yield LOST, f"the stream ended OK with {len(results)} results for {streams}"
        elif len(results) > streams or not ending.answers[-1].HasField("result"):
            yield WRONG, f"the stream gave {len(results)} results for {streams}, or messages after the last"
        for result in results:
            yield from self._content(content, result)
        expected = self._oracle.expected(content.same[0])
        wanted, card = expected.previews, self._oracle.cards[content.model]
        steps = [preview.step for preview in previews]
        if wanted is None or any(not 1 <= step <= len(wanted) for step in steps):
            yield WRONG, f"previews of steps {steps}"
            return
        if streams == 1 and any(after <= before for before, after in pairwise(steps)):
            yield WRONG, f"previews out of order: {steps}"
        for preview in previews:
            image = wanted[preview.step - 1][np.newaxis]
            complaint = images_differ(preview.image, image, card, expected.preview_tolerance)
            if complaint:
                yield WRONG, f"preview of step {preview.step}: {complaint}"

    def _infer_stream(self, request: Request, ending: Ending) -> Iterator[tuple[str, str]]:
        """One answer a request, in their order."""
        if len(ending.answers) < len(request.contents):
            yield LOST, f"{len(ending.answers)} answers for {len(request.contents)} requests of the stream"
        if len(ending.answers) > len(request.contents):
            yield WRONG, f"{len(ending.answers)} answers for {len(request.contents)} requests of the stream"
        for content, answer in zip(request.contents, ending.answers, strict=False):
            if answer.error_message:
                yield CODE, f"{content.line()}: {answer.error_message}"
            else:
                yield from self._content(content, answer.infer_response)

    # -- each yields complaints ---------------------------------------------------------------------

    def _samples(self, content: Content, expected: Expected, answer: pb.SampleResponse) -> Iterator[str]:
        request = content.same[0]
        if (answer.model, answer.seed) != (request.model, request.seed):
            yield f"answered for {answer.model} with seed {answer.seed}"
        if request.version and answer.version != request.version:
            yield f"version {request.version} was asked for, {answer.version} answered"
        if answer.nfe != expected.nfe:
            yield f"spent {answer.nfe} network evaluations, wanted {expected.nfe}"
        if expected.images is None:
            yield "samples in answer to no request for samples"
            return
        card = self._oracle.cards[request.model]
        complaint = images_differ(answer.images, expected.images, card, expected.tolerance)
        if complaint:
            yield f"the images are {complaint}"

    def _scores(self, content: Content, expected: Expected, answer: pb.ScoreResponse) -> Iterator[str]:
        scales = [entry.scale for entry in answer.scores]
        if scales != list(expected.energies):
            yield f"scales {scales}, wanted {list(expected.energies)}"
            return
        for entry in answer.scores:
            energies = np.array(entry.energy)
            complaint = differs(energies, expected.energies[entry.scale])
            if complaint:
                yield f"the energies of scale {entry.scale} are {complaint}"
            yield from self._derived(content.model, entry, energies, answer.false_alarm_rate)

    def _derived(self, model: str, entry: pb.ScaleScores, energies: np.ndarray, rate: float) -> Iterator[str]:
        """Percentile, p-value and decision are those of the energies that came: ties fall to either side of 1e-4."""
        calibration = self._oracle.calibrations.get((model, entry.scale))
        if calibration is None:
            return
        decided = np.array(entry.out_of_distribution)
        for name, got, wanted in (
            ("percentiles", np.array(entry.percentile), calibration.percentile(energies)),
            ("p-values", np.array(entry.p_value), calibration.p_value(energies)),
            ("decisions", decided, calibration.decision(energies, rate)),
        ):
            complaint = differs(got, wanted, 1e-9)
            if complaint:
                yield f"the {name} of scale {entry.scale} are {complaint}"

    def _inferred(
        self, content: Content, expected: Sequence[Expected], answer: oip.ModelInferResponse
    ) -> Iterator[str]:
        message = content.message
        if isinstance(message, oip.ModelInferRequest) and (answer.id, answer.model_name) != (
            message.id,
            message.model_name,
        ):
            yield f"answered for {answer.model_name} with id {answer.id!r}"
        outputs = {
            output.name: np.frombuffer(raw, _DTYPES[output.datatype]).reshape(tuple(output.shape))
            for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
        }
        images = [result.images for result in expected if result.images is not None]
        if images:
            name, wanted = "IMAGES", np.concatenate(images)
        else:
            name, wanted = "ENERGY", np.stack(list(expected[0].energies.values()), axis=1)
        got = outputs.get(name)
        tolerance = max(result.tolerance for result in expected)
        complaint = differs(got, wanted, tolerance) if got is not None else "missing"
        if complaint:
            yield f"the output {name} is {complaint}"


_DTYPES = {"FP32": "<f4", "FP64": "<f8", "BOOL": "|b1", "INT64": "<i8", "UINT64": "<u8"}


def _native(request: Request) -> Native | None:
    """What the bytes of a request ask for; None where they are no native message."""
    kinds: dict[str, type[Native]] = {SAMPLE: pb.SampleRequest, STREAM: pb.SampleRequest, SCORE: pb.ScoreRequest}
    kind = kinds.get(request.method)
    if kind is None:
        return None
    try:
        return kind.FromString(request.data[0])
    except DecodeError:
        return None
