"""`python -m bench MEASUREMENT`, see `MEASUREMENTS`: exit code 0 done, 1 failed, 2 wrong usage."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from rich.console import Console

from server.client import FewstepError

from . import quality, soak
from .compare import command as compare
from .demo import command as demo
from .end_to_end import command as end_to_end
from .faults import command as faults
from .gate import command as gate
from .gpu import command as gpu
from .kernels import command as kernels
from .load import command as load
from .peers import command as peers
from .profile import command as profile
from .server_process import ServerFailed
from .simulate import command as simulate
from .targets import TargetError

MEASUREMENTS = {
    "load": load,
    "compare": compare,
    "peers": peers,
    "profile": profile,
    "simulate": simulate,
    "end-to-end": end_to_end,
    "kernels": kernels,
    "gpu": gpu,
    "gate": gate,
    "demo": demo,
    "quality": quality,
    "faults": faults,
    "soak": soak,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one measurement and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure a fewstep server.")
    commands = parser.add_subparsers(dest="measurement", required=True)
    for name, module in MEASUREMENTS.items():
        summary = (module.__doc__ or "").partition("\n")[0]
        module.add_arguments(commands.add_parser(name, help=summary, description=summary))
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that a server of ours is stopped too
    console = Console(stderr=True, markup=False, highlight=False)
    try:
        return MEASUREMENTS[options.measurement].main(options, console)
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


if __name__ == "__main__":
    sys.exit(main())
