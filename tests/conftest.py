"""Shared by all tests: one thread per worker, fixed seeds, and no search for garbage in the libraries."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    # Two workers with two threads each on two cores would wait for each other at every kernel.
    torch.set_num_threads(1)


LONGEST = ("test_fuzz.py", "test_architectures.py", "test_explainer.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first, so that no worker is alone with one at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.hookimpl(hookwrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported by now stays, so no garbage is searched for in these 700,000 objects of libraries.

    Afterwards it is searched for every 10,000 new objects, not 700: torch.export makes that many with a few nodes.
    """
    gc.disable()
    yield
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    gc.enable()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def fresh_compiler() -> None:
    """Dynamo counts compilations by code object, and all converted modules have one `forward`: up to eight in a process."""
    torch.compiler.reset()
