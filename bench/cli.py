"""`python -m bench MEASUREMENT`, see `MEASUREMENTS`: exit code 0 done, 1 failed, 2 wrong usage."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from rich.console import Console

from server.client import FewstepError

from .server_process import ServerFailed
from .targets import TargetError

MEASUREMENTS = {
    "load": "bench.load.command",
    "compare": "bench.compare.command",
    "peers": "bench.peers.command",
    "profile": "bench.profile.command",
    "simulate": "bench.simulate.command",
    "end-to-end": "bench.end_to_end.command",
    "kernels": "bench.kernels.command",
    "gpu": "bench.gpu.command",
    "gate": "bench.gate.command",
    "demo": "bench.demo.command",
    "quality": "bench.quality",
    "faults": "bench.faults.command",
    "soak": "bench.soak",
    "turns": "bench.turns.command",
}
"""The module of each: with `add_arguments`, and `main`, which returns the exit code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one measurement and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # The others may import torch and matplotlib, which take seconds.
    named = [name for name in arguments[:1] if name in MEASUREMENTS]
    modules = {name: import_module(MEASUREMENTS[name]) for name in named or MEASUREMENTS}
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure a fewstep server.")
    commands = parser.add_subparsers(dest="measurement", required=True)
    for name, module in modules.items():
        summary = (module.__doc__ or "").partition("\n")[0]
        module.add_arguments(commands.add_parser(name, help=summary, description=summary))
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that a server of ours is stopped too
    console = Console(stderr=True, markup=False, highlight=False)
    try:
        return int(modules[options.measurement].main(options, console))
    except FewstepError as error:
        console.print(f"python -m bench {options.measurement}: the server said {error}")
    except (ServerFailed, TargetError) as error:
        console.print(f"python -m bench {options.measurement}: {error}")
    except OSError as error:  # a file or folder that was named
        console.print(f"python -m bench {options.measurement}: {error}")
    except ValueError as error:
        console.print(f"python -m bench {options.measurement}: {error}")
        return 2
    except KeyboardInterrupt:
        return 130
    return 1
