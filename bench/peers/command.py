"""`python -m bench peers`: the servers that fewstep is compared with, and their environments."""

from __future__ import annotations

import argparse
from importlib.metadata import version

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from server import __version__

from .environments import PeerEnvironmentError, install, is_installed, names, version_of
from .registry import PEERS, Peer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench peers`."""
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="what there is, and what is installed")
    installing = actions.add_parser("install", help="make their environments, below .venv-peers/")
    installing.add_argument("name", nargs="*", metavar="NAME", help=f"of {', '.join(names())}; default: all")


def main(options: argparse.Namespace, console: Console) -> int:
    """List the peers, or install them; 1 where one could not be installed, after trying the others."""
    if options.action == "list":
        console.print(listing())
        return 0
    failed = 0
    for name in options.name or names():
        try:
            with console.status(name) as status:
                fresh = install(name, status.update)
        except PeerEnvironmentError as error:
            failed += 1
            console.print(f"{name}: {error}")
        else:
            console.print(f"{name}: {'installed' if fresh else 'up to date'}")
    return 1 if failed else 0


def listing() -> Table:
    """The peers, how they are spoken to, and whether they can be started here."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("name", "what", "protocol", "version"):
        table.add_column(heading, no_wrap=True)
    for peer in PEERS.values():
        table.add_row(peer.name, peer.title, peer.protocol, state_of(peer))
    return table


def state_of(peer: Peer) -> str:
    """The version of a peer in its environment, or how to get it."""
    if peer.environment is None:
        return __version__ if peer.package is None else version(peer.package)
    if not is_installed(peer.environment):
        return f"not installed: python -m bench peers install {peer.environment}"
    return version_of(peer.environment, peer.package or peer.environment)
