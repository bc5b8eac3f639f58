"""Everything that can go wrong for a caller, and the one table to gRPC status codes (DESIGN 4)."""

from __future__ import annotations

import grpc


class ServerError(Exception):
    """Base of the errors that callers see; the message says what came and what is accepted."""


class InvalidArgument(ServerError):
    """Malformed or out of range. `field` is the field's name in the API."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class NotFound(ServerError):
    """Unknown model, version or label; the message lists what there is."""


class ModelGone(NotFound):
    """The model was unloaded or replaced after it was looked up: looking it up again finds what there is now."""


class FailedPrecondition(ServerError):
    """The model cannot do that."""


class Overloaded(ServerError):
    """The queue or a memory budget is full, or the room is left to others. `retry_seconds`: from the drain rate."""

    def __init__(self, message: str, retry_seconds: float) -> None:
        super().__init__(f"{message}; retry in {retry_seconds:.3g} s")
        self.retry_seconds = retry_seconds


class DeadlineExceeded(ServerError):
    """The deadline passed, or cannot be met."""


class Cancelled(ServerError):
    """The caller is gone."""


class Unavailable(ServerError):
    """Draining, or not ready."""


class Internal(ServerError):
    """A row's state became non-finite, or a bug."""


class StepFailed(Internal):
    """A row's step could not be run, e.g. for want of memory."""


class Unauthenticated(ServerError):
    """No or wrong credentials. Nothing is said of what was wrong, nor of what there is."""

    def __init__(self) -> None:
        super().__init__("valid credentials are required, in the metadata: authorization: Bearer TOKEN")


class PermissionDenied(ServerError):
    """A known client that may not do that."""


STATUS: dict[type[ServerError], grpc.StatusCode] = {
    InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    ModelGone: grpc.StatusCode.NOT_FOUND,
    FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    Cancelled: grpc.StatusCode.CANCELLED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    Internal: grpc.StatusCode.INTERNAL,
    StepFailed: grpc.StatusCode.INTERNAL,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
}
