"""A client that is there to be killed: opens streams, reads one message of each, and says so.

`python -m bench.faults.doomed ADDRESS REQUEST`, the request in hex.
"""

from __future__ import annotations

import sys
import threading

import grpc

STREAMS = 3
LONGEST = 60.0
"""Seconds after which it goes by itself, should nobody kill it."""


def main(address: str, request: bytes) -> None:
    """Open the streams and wait for the end."""
    channel = grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)])
    open_stream = channel.unary_stream("/fewstep.v1.Sampler/SampleStream", None, None)
    streams = [open_stream(request) for _ in range(STREAMS)]
    try:
        for stream in streams:
            next(iter(stream))
    except grpc.RpcError as error:
        print(f"{error.code().name}: {error.details()}" if isinstance(error, grpc.Call) else error, flush=True)
        return
    print("reading", flush=True)
    threading.Event().wait(LONGEST)


if __name__ == "__main__":
    main(sys.argv[1], bytes.fromhex(sys.argv[2]))
