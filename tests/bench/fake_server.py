"""A server with the project's API and none of its models, to test what talks to it.

Images that it returns count up from -1 in steps of 1/32, so that every pixel is known. Energies are the mean pixels.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from PIL import Image

from protos import fewstep_pb2 as pb
from protos import fewstep_pb2_grpc as rpc

SHAPE = (1, 4, 6)
SUMMARY = pb.ModelSummary(
    name="toy", version=3, family="toy", description="a toy", samplers=["ddim", "iddim"], scores=True
)


def images_for(count: int) -> np.ndarray:
    """What the fake returns for a request of `count` samples."""
    size = int(np.prod((count, *SHAPE)))
    return (np.arange(size, dtype=np.float32) % 65 / 32 - 1).reshape(count, *SHAPE)


def _message(images: np.ndarray, encoding: int) -> pb.Images:
    if encoding != pb.PNG:
        return pb.Images(encoding=pb.RAW, shape=images.shape, raw=images.astype("<f4").tobytes())
    files = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(np.rint((image[0] + 1) * 127.5).astype(np.uint8)).save(file, "PNG")
        files.append(file.getvalue())
    return pb.Images(encoding=pb.PNG, shape=images.shape, png=files)


class FakeServer(rpc.SamplerServicer, rpc.ScorerServicer, rpc.ModelsServicer):
    """Answers by the model's name: `toy` works, `full`, `missing`, `mute` and `garbled` fail each in its way.

    requests: all that came. stall: (from, to) in seconds since the first request, during which nothing is answered.
    """

    def __init__(self) -> None:
        self.address = ""
        self.requests: list[pb.SampleRequest | pb.ScoreRequest] = []
        self.stall = (0.0, 0.0)
        self.sample_seconds = 0.0
        self.calibrated = True
        self.stream_cancelled = threading.Event()
        self._first: float | None = None

    def _come_in(self, request: pb.SampleRequest | pb.ScoreRequest, context: grpc.ServicerContext) -> None:
        now = time.monotonic()
        self._first = now if self._first is None else self._first
        self.requests.append(request)
        begin, end = self.stall
        if begin <= now - self._first < end:
            time.sleep(end - (now - self._first))
        time.sleep(self.sample_seconds)
        if request.model == "full":
            detail = any_pb2.Any()
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMilliseconds(1500)
            detail.Pack(retry)
            status = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message="the queue is full", details=[detail])
            context.abort_with_status(rpc_status.to_status(status))
        if request.model not in ("toy", "mute", "garbled"):
            context.abort(grpc.StatusCode.NOT_FOUND, f"model: no {request.model!r}; there is toy")

    def Sample(self, request: pb.SampleRequest, context: grpc.ServicerContext) -> pb.SampleResponse:
        self._come_in(request, context)
        count = request.count if request.HasField("count") else 1
        response = pb.SampleResponse(
            model="toy",
            version=3,
            images=_message(images_for(count), request.encoding),
            seed=request.seed if request.HasField("seed") else 99,
            sampler=request.sampler or "ddim",
            steps=request.steps or 10,
            nfe=request.steps or 10,
            timing=pb.Timing(
                queue_seconds=0.001, compute_seconds=0.002, total_seconds=0.003, steps=4, mean_batch_rows=2.5
            ),
        )
        if request.model == "garbled":
            response.images.raw = response.images.raw[:-1]
        return response

    def SampleStream(self, request: pb.SampleRequest, context: grpc.ServicerContext) -> Iterator[pb.SampleEvent]:
        # The callback comes at the end of every call, a finished one's perhaps during the next one.
        finished = threading.Event()
        context.add_callback(lambda: None if finished.is_set() else self.stream_cancelled.set())
        steps = request.steps or 3
        for step in range(1, steps + 1):
            preview = pb.Preview(step=step, steps=steps, image=_message(images_for(1), request.encoding))
            yield pb.SampleEvent(preview=preview)
        finished.set()
        if request.model != "mute":
            yield pb.SampleEvent(result=self.Sample(request, context))

    def Score(self, request: pb.ScoreRequest, context: grpc.ServicerContext) -> pb.ScoreResponse:
        self._come_in(request, context)
        images = np.frombuffer(request.images.raw, "<f4").reshape(request.images.shape)
        energy = images.mean(axis=(1, 2, 3)).tolist()
        rate = request.false_alarm_rate if request.HasField("false_alarm_rate") else 0.05
        scales = [scale for name in request.scales for scale in (("clean", "noisy") if name == "all" else (name,))]
        entries = [pb.ScaleScores(scale=scale, energy=energy) for scale in scales or ["clean"]]
        for entry in entries if self.calibrated else []:
            entry.percentile.extend([50.0] * len(energy))
            entry.p_value.extend([0.5 if value <= 0.5 else 0.01 for value in energy])
            entry.out_of_distribution.extend([value > 0.5 for value in energy])
            entry.threshold = 0.5
        timing = pb.Timing(total_seconds=0.001, mean_batch_rows=len(energy))
        return pb.ScoreResponse(
            model="toy", version=3, scores=entries, false_alarm_rate=rate, seed=5, nfe=1, timing=timing
        )

    def ListModels(self, request: pb.ListModelsRequest, context: grpc.ServicerContext) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[SUMMARY])

    def DescribeModel(
        self, request: pb.DescribeModelRequest, context: grpc.ServicerContext
    ) -> pb.DescribeModelResponse:
        if request.model not in ("toy", "full", "mute"):
            context.abort(grpc.StatusCode.NOT_FOUND, f"model: no {request.model!r}; there is toy")
        return pb.DescribeModelResponse(
            summary=SUMMARY,
            image_shape=SHAPE,
            low=-1.0,
            high=1.0,
            labels=2,
            label_names=["a", "b"],
            guidance=True,
            default_steps=10,
            accepted_steps=range(1, 101),
            scales=["clean", "noisy"],
            calibrated=self.calibrated,
            manifest_json='{"card": {"name": "toy"}}',
        )

    def GetServerStatus(
        self, request: pb.GetServerStatusRequest, context: grpc.ServicerContext
    ) -> pb.GetServerStatusResponse:
        return pb.GetServerStatusResponse(version="0", engine="fake", ready=True, uptime_seconds=1.5, requests_total=7)


@contextmanager
def fake_server() -> Iterator[FakeServer]:
    """A FakeServer on a free port of this machine."""
    fake = FakeServer()
    server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
    for register in (
        rpc.add_SamplerServicer_to_server,
        rpc.add_ScorerServicer_to_server,
        rpc.add_ModelsServicer_to_server,
    ):
        register(fake, server)
    fake.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield fake
    finally:
        server.stop(grace=None).wait()
