"""Pictures for the tests."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def save(path: Path, mode: str, size: tuple[int, int] = (6, 4), colour: object = None) -> Path:
    Image.new(mode, size, colour).save(path)  # type: ignore[arg-type]
    return path
