"""Where a GPU is, the kernels run compiled on it: their tests are tests of the GPU then."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        module = getattr(item, "module", None)
        if module is not None and module.__name__.startswith(__package__) and getattr(module, "DEVICE", None) == "cuda":
            item.add_marker(pytest.mark.gpu)
