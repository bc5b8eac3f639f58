"""The one who adds, replaces, damages and removes versions of a model on disk, while a server serves them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from models.bundle import MANIFEST
from protos import fewstep_pb2 as pb

from .kinds import Drawer
from .requests import Request

Step = tuple[Callable[[], None], Request]
"""What is done on disk, and the request that the server is then sent."""

LOAD, UNLOAD, RELOAD = ("/fewstep.v1.Models/" + method for method in ("LoadModel", "UnloadModel", "ReloadModel"))


FIRST_NUMBER = 1_000_000
"""Its requests have numbers of their own: how many there are depends on the time that the others take."""


class Keeper:
    """Keeps one repository, which it changes: give it a copy."""

    def __init__(self, repository: Path, drawer: Drawer) -> None:
        self._repository = repository
        self._drawer = drawer
        self._asked = 0

    def round(self, name: str) -> Iterator[Step]:
        """One version follows another, with all that can go wrong on the way; the model is served all the time."""
        old = max(int(directory.name) for directory in (self._repository / name).iterdir())
        new = old + 1
        directory = self._repository / name / str(new)
        yield lambda: self._copy(name, old, new), self._ask(RELOAD, "OK", pb.ReloadModelRequest(model=name))
        self._drawer.versions[name] = new
        yield _nothing, self._ask(LOAD, "OK", pb.LoadModelRequest(model=name, version=new))
        graph = min(directory.glob("*.onnx"))
        yield from self._damaged(graph, self._ask(LOAD, "FAILED_PRECONDITION", pb.LoadModelRequest(model=name)))
        reload = self._ask(RELOAD, "FAILED_PRECONDITION", pb.ReloadModelRequest(model=name))
        yield from self._damaged(directory / MANIFEST, reload)
        yield _nothing, self._ask(RELOAD, "OK", pb.ReloadModelRequest(model=name))
        yield _nothing, self._ask(UNLOAD, "OK", pb.UnloadModelRequest(model=name, version=old))
        yield _nothing, self._ask(UNLOAD, "NOT_FOUND", pb.UnloadModelRequest(model=name, version=old))
        yield (
            lambda: shutil.rmtree(self._repository / name / str(old)),
            self._ask(RELOAD, "OK", pb.ReloadModelRequest(model=name)),
        )
        yield _nothing, self._ask(LOAD, "NOT_FOUND", pb.LoadModelRequest(model=name, version=old))

    def _damaged(self, path: Path, request: Request) -> Iterator[Step]:
        """Flip bits in the middle of a file, and put it right once the server has looked at it."""
        whole = path.read_bytes()
        middle = len(whole) // 2
        yield lambda: _write(path, whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :]), request
        _write(path, whole)

    def _copy(self, name: str, old: int, new: int) -> None:
        directory = self._repository / name / str(new)
        shutil.copytree(self._repository / name / str(old), directory)
        manifest = json.loads((directory / MANIFEST).read_text())
        (directory / MANIFEST).write_text(json.dumps(manifest | {"version": new}))

    def _ask(
        self, method: str, code: str, message: pb.LoadModelRequest | pb.UnloadModelRequest | pb.ReloadModelRequest
    ) -> Request:
        self._asked += 1
        data = (message.SerializeToString(),)
        return Request(FIRST_NUMBER + self._asked, f"models: {code}", method, data, frozenset([code]))


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _nothing() -> None:
    """Leaves the disk as it is."""
