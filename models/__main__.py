"""`python -m models quality`: measure the models of the zoo."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from .quality import command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m models", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    summary = command.__doc__
    command.add_arguments(commands.add_parser("quality", help=summary, description=summary))
    return command.main(parser.parse_args(arguments), Console())


if __name__ == "__main__":
    sys.exit(main())
