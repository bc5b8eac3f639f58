"""What the tests of TLS and of access share: two clients' tokens, and how calls are made and refused."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from protos import fewstep_pb2 as pb

ALICE, BOB = "alice-" + "1" * 40, "bob-" + "2" * 40


def sample(**fields: Any) -> pb.SampleRequest:
    return pb.SampleRequest(**({"model": "digits-ddpm", "steps": 1, "seed": 1} | fields))


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def refusal(call: Any, *arguments: Any, **options: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **options)
    return caught.value


def is_unauthenticated(error: grpc.RpcError) -> bool:
    """With the one message that there is, which tells nothing."""
    message = "valid credentials are required, in the metadata: authorization: Bearer TOKEN"
    return (error.code(), error.details()) == (grpc.StatusCode.UNAUTHENTICATED, message)
