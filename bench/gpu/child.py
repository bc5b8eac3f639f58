"""`python -m bench.gpu.child PART DEVICE DEADLINE OUTPUT FINDINGS`: one part, in a process of its own.

DEADLINE is of the machine's monotonic clock, so that starting up counts.
"""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter

import msgspec

from .parts import Findings, Setting
from .registry import all_parts


def main(name: str, device: str, deadline: str, output: str, findings: str) -> None:
    """Run the part and write what it found."""
    part = next(part for part in all_parts() if part.name == name)

    def keep(found: Findings) -> None:
        making = Path(findings).with_suffix(".making")  # whoever reads it finds all of it
        making.write_bytes(msgspec.json.encode(found))
        making.rename(findings)

    keep(part.measure(Setting(device, float(deadline) - perf_counter(), Path(output), keep)))


if __name__ == "__main__":
    main(*sys.argv[1:])
