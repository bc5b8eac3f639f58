"""The least that a server of this kind can cost: `python -m bench.profile.floor [GRAPH RUNS]`.

A grpc.aio server with one method, bytes to bytes, and nothing of this project. With a graph a call runs it RUNS times
with one row of zeros, right there in the event loop, and answers with the seconds that this took: what is left is the
gRPC library and the event loop. Without one it answers at once.
"""

from __future__ import annotations

import asyncio
import struct
import sys
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


async def serve(graph: Path | None, runs: int) -> None:
    """Serve until the process is ended."""
    run = None if graph is None else _network(graph)

    async def call(request: bytes, context: Any) -> bytes:
        if run is None:
            return SECONDS.pack(0.0)
        started = perf_counter()
        for _ in range(runs):
            run()
        return SECONDS.pack(perf_counter() - started)

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
