"""Logging to stderr, one line an event."""

from __future__ import annotations

import logging
import sys


def configure(level: str) -> None:
    """Send the server's log to stderr; `level` is one of debug, info, warning, error."""
    logging.basicConfig(
        stream=sys.stderr, level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
