"""Bounds on the names and lists that callers give, checked before any is copied, looked up or quoted."""

from __future__ import annotations

from collections.abc import Sized

from .errors import InvalidArgument

MAX_NAME = 128
MAX_LIST = 1000


def check_name(field: str, name: str) -> str:
    """The name itself.

    Raises:
        InvalidArgument: it is longer than any name there is; tells its length and leaves the name out.
    """
    if len(name) > MAX_NAME:
        raise InvalidArgument(field, f"must hold at most {MAX_NAME} characters, got {len(name)}")
    return name


def check_count(field: str, values: Sized, limit: int = MAX_LIST) -> None:
    """Raises InvalidArgument where a list holds more entries than any request needs."""
    if len(values) > limit:
        raise InvalidArgument(field, f"must hold at most {limit} entries, got {len(values)}")
