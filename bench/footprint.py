"""What a process holds: memory, threads and open files, from Linux's /proc."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
WITHOUT_PROC = "no /proc on this system: memory, threads and descriptors were not measured"


@dataclass(frozen=True)
class Footprint:
    """rss_bytes: resident memory. threads: of the process. descriptors: open files and sockets."""

    rss_bytes: int
    threads: int
    descriptors: int

    @property
    def rss_mb(self) -> float:
        """Resident memory in megabytes, 10^6 bytes."""
        return self.rss_bytes / 1e6


def footprint(pid: int, proc: Path = PROC) -> Footprint | None:
    """What a process holds now; None where the system has no /proc.

    Raises:
        ProcessLookupError: there is no such process, or none any more.
    """
    if not (proc / "self").exists():
        return None
    try:
        status = (proc / str(pid) / "status").read_text()
        descriptors = len(list((proc / str(pid) / "fd").iterdir()))
    except FileNotFoundError:
        raise ProcessLookupError(f"no process {pid}") from None
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    if "VmRSS" not in fields:  # it has ended, and nobody has asked for its exit code yet
        raise ProcessLookupError(f"process {pid} has ended")
    return Footprint(1024 * int(fields["VmRSS"].split()[0]), int(fields["Threads"]), descriptors)
