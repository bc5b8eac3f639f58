"""Files beside a graph that can be made anew: TensorRT's engines and timings.

A file holds one line of JSON with the key that it was made for and the SHA-256 of the rest, then the rest. What was
made for another key or is damaged counts as absent. Files appear whole or not at all, by a rename.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

log = logging.getLogger(__name__)

Key = Mapping[str, str]
HEADER_BYTES = 1 << 16
"""More than any header of ours has: a foreign file need not have a line end anywhere."""


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    key: dict[str, str]
    sha256: str


def read(path: Path, key: Key) -> bytes | None:
    """The contents of a cached file, or None where there is none that was made for this key and is whole."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("%s: cannot be read, will be made anew: %s", path, error.strerror)
        return None
    end = data[:HEADER_BYTES].find(b"\n")
    try:
        header = msgspec.json.decode(data[: max(end, 0)], type=_Header)
    except msgspec.DecodeError:
        log.warning("%s: is none of ours, will be made anew", path)
        return None
    contents = data[end + 1 :]
    if header.key != key:
        changed = sorted(name for name in {*header.key, *key} if header.key.get(name) != key.get(name))
        log.info("%s: was made for another %s, will be made anew", path, ", ".join(changed))
        return None
    if hashlib.sha256(contents).hexdigest() != header.sha256:
        log.warning("%s: is damaged, will be made anew", path)
        return None
    return contents


def write(path: Path, key: Key, contents: bytes) -> bool:
    """Write a cached file; says in the log where that is not possible, and returns whether it was."""
    header = msgspec.json.encode(_Header(dict(key), hashlib.sha256(contents).hexdigest()))
    name = None
    try:
        # The name starts with a dot, so that nothing takes it for a file of the bundle.
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(header + b"\n")
            file.write(contents)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except OSError as error:
        log.warning("%s: cannot be written, and will be made again next time: %s", path, error.strerror)
        if name is not None:
            with suppress(OSError):
                Path(name).unlink()
        return False
    return True
