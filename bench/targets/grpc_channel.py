"""What the gRPC targets have in common: one connection, and the names of what went wrong."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio

from .target import CONNECT_TIMEOUT, TargetError

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]


async def connect(address: str, within: float = CONNECT_TIMEOUT) -> grpc.aio.Channel:
    """A channel whose connection is made.

    Raises:
        TargetError: there is none within so many seconds.
    """
    channel = grpc.aio.insecure_channel(address, OPTIONS)
    try:
        await asyncio.wait_for(channel.channel_ready(), within)
    except TimeoutError:
        await channel.close(None)
        raise TargetError(f"{address}: no gRPC server answers within {within:g} s") from None
    return channel


def refused(address: str, what: str, error: grpc.aio.AioRpcError) -> TargetError:
    """The error to raise where a call that is needed before the load failed."""
    return TargetError(f"{address}: {what}: {error.code().name}: {error.details() or 'no reason given'}")
