"""Streams of requests, and the asyncio client."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from protos import inference_pb2 as oip

from ..running import RunningServer, wait_until
from .oip_client import SAMPLER, contents, idle, native, seeds

# -- streams ----------------------------------------------------------------------------------------


def test_a_stream_answers_every_request_with_its_id_and_in_order(server: RunningServer, client):
    """A slow request first, a bad one in the midst: answers in order, the error with its code, the stream goes on."""
    results: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: results.put((result, error)))
    steps = [40, 2, 0, 2, 1]
    for index, count in enumerate(steps):
        client.async_stream_infer(
            SAMPLER,
            [seeds(index)],
            request_id=f"request {index}",
            parameters={"steps": count},
            enable_empty_final_response=index == 1,
        )
    for index, count in enumerate(steps):
        result, error = results.get(timeout=30)
        if count == 0:
            assert "INVALID_ARGUMENT: steps: must be within 1..100, got 0" in error.message()
            continue
        response = result.get_response()
        assert response.id == f"request {index}"
        assert np.abs(result.as_numpy("IMAGES")[0] - native(server, index, steps=count)).max() <= 1e-5
        assert response.parameters["triton_final_response"].bool_param == (index == 1)
    client.stop_stream()
    assert results.empty()


def test_a_failed_request_of_a_stream_is_named(server: RunningServer):
    """The message with an error holds the id of the request that failed."""
    stub = stream(server)
    (answer,) = stub(iter([oip.ModelInferRequest(model_name="nope", id="x")]), timeout=30)
    assert answer.error_message.startswith("NOT_FOUND: ")
    assert answer.infer_response.id == "x"


def stream(server: RunningServer) -> Any:
    return server.channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
        response_deserializer=oip.ModelStreamInferResponse.FromString,
    )


def test_bytes_that_are_no_message_end_the_stream(server: RunningServer):
    """A stream is given up with INVALID_ARGUMENT where its next request cannot be read."""
    with pytest.raises(grpc.RpcError) as caught:
        list(stream(server)(iter([contents([bytes(8)]), b"\xff\xff"]), timeout=30))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_many_requests_go_through_one_stream(server: RunningServer, client: triton.InferenceServerClient):
    """More requests than run at a time: every one is answered, in order."""
    results: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: results.put((result, error)))
    for index in range(100):
        client.async_stream_infer(SAMPLER, [seeds(index)], request_id=str(index), parameters={"steps": 1})
    answers = [results.get(timeout=60)[0] for _ in range(100)]
    client.stop_stream()
    assert [answer.get_response().id for answer in answers] == [str(index) for index in range(100)]
    assert np.abs(answers[63].as_numpy("IMAGES")[0] - native(server, 63, steps=1)).max() <= 1e-5


def test_a_cancelled_stream_frees_its_rows(server: RunningServer, client: triton.InferenceServerClient):
    """Stopping a stream with its requests cancels all of them."""
    results: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: results.put(error))
    for _ in range(3):
        client.async_stream_infer(SAMPLER, [seeds(*range(64))], parameters={"steps": 100, "spacing": "linear"})
    wait_until(lambda: server.engine.batcher.jobs > 1)
    client.stop_stream(cancel_requests=True)
    assert results.get(timeout=20).status() == "StatusCode.CANCELLED"
    wait_until(lambda: idle(server))


# -- asyncio ----------------------------------------------------------------------------------------


def test_the_asyncio_client_works_too(server: RunningServer):
    """Readiness, ten inferences at once, a cancelled one and a stream, through `tritonclient.grpc.aio`."""

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for index in range(4):
            yield {
                "model_name": SAMPLER,
                "inputs": [seeds(index)],
                "request_id": str(index),
                "parameters": {"steps": 0 if index == 2 else 2},
            }

    async def run() -> tuple[list[Any], list[Any]]:
        async with triton_aio.InferenceServerClient(server.address) as client:
            assert await client.is_server_ready()
            slow = asyncio.ensure_future(
                client.infer(SAMPLER, [seeds(*range(64))], parameters={"steps": 100, "spacing": "linear"})
            )
            calls = [client.infer(SAMPLER, [seeds(seed)], parameters={"steps": 2}) for seed in range(10)]
            images = [result.as_numpy("IMAGES")[0] for result in await asyncio.gather(*calls)]
            slow.cancel()
            with pytest.raises(asyncio.CancelledError):
                await slow
            with pytest.raises(InferenceServerException, match="NOT_FOUND"):
                await client.infer("nope", [seeds(1)])
            answers = [answer async for answer in client.stream_infer(requests())]
            return images, answers

    images, answers = asyncio.run(run())
    for seed, image in enumerate(images):
        assert np.abs(image - native(server, seed, steps=2)).max() <= 1e-5
    assert [result and result.get_response().id for result, _ in answers] == ["0", "1", None, "3"]
    assert "steps" in answers[2][1].message()
    wait_until(lambda: idle(server))
