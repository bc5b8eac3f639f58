"""The least that a server of this kind can cost: `python -m bench.profile.floor [GRAPH RUNS]`.

A grpc.aio server with one method, bytes to bytes, and nothing of this project. With a graph it hands each call to a
thread, which runs the graph RUNS times with one row of zeros, and answers with the seconds that this took: what is left
is the gRPC library, the event loop and the way to a thread and back. Without one it answers at once.
"""

from __future__ import annotations

import asyncio
import queue
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import grpc
import grpc.aio
import numpy as np

METHOD = "/floor.Floor/Call"
SECONDS = struct.Struct("<d")
_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


def _network(graph: Path) -> Callable[[], None]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    inputs = {value.name: np.zeros((1, *value.shape[1:]), dtype=_TYPES[value.type]) for value in session.get_inputs()}
    return lambda: session.run(None, inputs)


def _work(run: Callable[[], None], runs: int, calls: queue.SimpleQueue[Callable[[float], object]]) -> None:
    while True:
        answer = calls.get()
        started = perf_counter()
        for _ in range(runs):
            run()
        answer(perf_counter() - started)


async def serve(graph: Path | None, runs: int) -> None:
    """Serve until the process is ended."""
    calls: queue.SimpleQueue[Callable[[float], object]] = queue.SimpleQueue()
    loop = asyncio.get_running_loop()
    if graph is not None:
        threading.Thread(target=_work, args=(_network(graph), runs, calls), daemon=True).start()

    async def call(request: bytes, context: Any) -> bytes:
        if graph is None:
            return SECONDS.pack(0.0)
        done: asyncio.Future[float] = loop.create_future()
        calls.put(lambda seconds: loop.call_soon_threadsafe(done.set_result, seconds))
        return SECONDS.pack(await done)

    server = grpc.aio.server()
    service, method = METHOD.removeprefix("/").split("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(call)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready grpc=127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])) if len(sys.argv) > 1 else serve(None, 0))
