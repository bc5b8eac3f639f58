"""What the command line prints: tables for people, or one JSON document."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


class Output:
    """Where results go: tables for people, or one JSON document."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.people = Console(stderr=True, quiet=as_json, markup=False, highlight=False)
        self.tables = Console(quiet=as_json, markup=False, highlight=False)

    def document(self, value: Any) -> None:
        """Print the JSON document, where JSON was asked for."""
        if self.as_json:
            encoded = msgspec.json.encode(value, enc_hook=_plain)
            print(msgspec.json.format(encoded, indent=2).decode())

    def table(self, title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
        """Print a title and a table below it; numbers are set to the right."""
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        lines = [list(row) for row in rows]
        for index, column in enumerate(columns):
            numeric = all(isinstance(line[index], (int, float)) for line in lines)
            table.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for line in lines:
            table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in line))
        self.tables.print(title, soft_wrap=True)  # not the table's own title, which is cut to the table's width
        self.tables.print(table)

    def error(self, code: str, message: str, request_id: str = "") -> None:
        """Say on standard error what went wrong, and in the JSON document where one was asked for."""
        print(f"{code}: {message}" + (f" (request {request_id})" if request_id else ""), file=sys.stderr)
        self.document({"error": {"code": code, "message": message, "request_id": request_id}})


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"no JSON form for {type(value).__name__}")
