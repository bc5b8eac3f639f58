"""Files that hold secrets: read with care, and read again when they change."""

from __future__ import annotations

import logging
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Generic, TypeVar

from ..config import ConfigError

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_BYTES = 1 << 20
CHECK_SECONDS = 1.0
_OTHERS = stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP


def read_file(option: str, path: Path, *, private: bool) -> bytes:
    """The content of a file that an option names.

    private: refuse it where every user of this machine can read it, or others than its owner can write it.

    Raises:
        ConfigError: missing, unreadable, not a regular file, over 1 MiB, or not private; names option and file.
    """
    try:
        found = path.stat()
        # Before it is opened: opening a pipe would wait for its writer.
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{option}: {path} is not a regular file")
        if found.st_size > MAX_BYTES:
            raise ConfigError(f"{option}: {path} holds {found.st_size} bytes, at most {MAX_BYTES}")
        if private and found.st_mode & _OTHERS:
            raise ConfigError(f"{option}: {path} is open to other users (mode {found.st_mode & 0o777:04o}): chmod 600")
        with path.open("rb") as file:
            return file.read(MAX_BYTES)
    except OSError as error:
        raise ConfigError(f"{option}: {path}: {error.strerror or error}") from error


class Reloaded(Generic[T]):
    """A value made from files, and made again when one of them changes. May be used from any thread.

    Where the new files are bad, the old value stays and a warning is logged once.
    """

    def __init__(
        self,
        files: Sequence[Path],
        make: Callable[[], T],
        *,
        clock: Callable[[], float] = monotonic,
        seconds: float = CHECK_SECONDS,
    ) -> None:
        """make: reads the files. seconds: how often, at most, the files are looked at.

        Raises:
            ConfigError: the files are bad.
        """
        self._files = tuple(files)
        self._make = make
        self._clock = clock
        self._seconds = seconds
        self._lock = threading.Lock()
        self._checked = clock()
        # Taken before the files are read: a change that comes while they are is seen the next time.
        self._seen = self._signatures()
        self.value = make()

    def refresh(self) -> bool:
        """Look at the files if it is time to; returns whether there is a new value."""
        with self._lock:
            now = self._clock()
            if now - self._checked < self._seconds:
                return False
            self._checked = now
            seen = self._signatures()
            if seen == self._seen:
                return False
            self._seen = seen
            try:
                self.value = self._make()
            except ConfigError as error:
                log.warning("%s; what was read before stays in use", error)
                return False
            log.info("read again: %s", ", ".join(map(str, self._files)))
            return True

    def _signatures(self) -> list[tuple[int, ...] | None]:
        return [_signature(path) for path in self._files]


def _signature(path: Path) -> tuple[int, ...] | None:
    """Differs after every replacement, edit and chmod; None where there is no such file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
