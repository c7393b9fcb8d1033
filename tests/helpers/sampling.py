"""How many examples the fuzz tests draw, and from which seed on."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis.strategies import SearchStrategy

AT_RANDOM = "FXGRAD_FUZZ_EXAMPLES" in os.environ
# Printed by `pytest -s`, and by hypothesis when an example fails.
SEED = int(os.environ.get("FXGRAD_FUZZ_SEED", random.randrange(10**6)))


def sample(strategy: SearchStrategy[Any], examples: int) -> Callable[[Callable[[Any], None]], Callable[[], None]]:
    """Run a function on that many examples of a strategy: always the same ones, or other ones from SEED on."""

    def decorate(function: Callable[[Any], None]) -> Callable[[], None]:
        test = settings(
            max_examples=examples,
            derandomize=not AT_RANDOM,
            database=None,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        )(given(strategy)(function))
        return seed(SEED)(test) if AT_RANDOM else test

    return decorate
