"""Shared by all tests: one thread per worker, fixed seeds, and no search for garbage in the libraries."""

from __future__ import annotations

import gc
import os

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    # Two workers with two threads each on two cores would wait for each other at every kernel.
    torch.set_num_threads(1)


LONGEST = ("test_fuzz.py", "test_architectures.py", "test_explainer.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first, so that no worker is alone with one at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish() -> None:
    """What is imported by now stays: torch.export makes the collector run often, through 700,000 objects of libraries."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def fresh_compiler() -> None:
    """Dynamo counts compilations by code object, and all converted modules have one `forward`: up to eight in a process."""
    torch.compiler.reset()
