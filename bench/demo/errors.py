"""What ends a demo."""

from __future__ import annotations


class DemoError(Exception):
    """A step of the demo that failed; the message says which and why."""
