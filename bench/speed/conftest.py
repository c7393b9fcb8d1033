"""What pytest-benchmark is to write into the benchmark's JSON."""

from __future__ import annotations

import gc
import importlib.metadata
from typing import Any

import torch

from bench.speed.models import QUICK
from bench.speed.results import trim

PACKAGES = ("torch", "timm", "transformers", "captum", "zennit", "lxt")


def pytest_configure() -> None:
    if QUICK:
        torch.set_num_threads(1)
    # What imports have made stays: a collection between two rounds need not look at it.
    gc.collect()
    gc.freeze()


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    machine_info["versions"] = {name: importlib.metadata.version(name) for name in PACKAGES}
    machine_info["threads"] = torch.get_num_threads()
    machine_info["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    machine_info["quick"] = QUICK


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    trim(output_json)
