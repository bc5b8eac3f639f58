"""What is installed is what is there."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOP = ("server", "kernels", "export", "protos", "models", "bench")


def test_every_package_is_listed():
    """pyproject.toml names the packages one by one, and a new one is easily forgotten."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    modules = (path for top in TOP for path in (ROOT / top).rglob("*.py"))
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in modules}
    assert sorted(there) == sorted(listed)
