"""The processes of `torchrun`: how many there are, and what they share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from fxgrad.evaluate.store import Results

_PATIENCE = timedelta(days=2)
"""How long a process waits for the others, which may take longer."""


def everywhere(results: Results) -> tuple[frozenset[Any], frozenset[Any]]:
    """(done, refused) of all machines together: every process must see the same, to share the remaining work."""
    own = (results.done, frozenset(results.refused))
    if not dist.is_initialized():
        return own
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    return frozenset().union(*(d for d, _ in everyone)), frozenset().union(*(r for _, r in everyone))


@contextmanager
def processes() -> Iterator[tuple[int, int]]:
    """(rank, number of processes), from the environment variables that `torchrun` sets."""
    if "WORLD_SIZE" not in os.environ or not dist.is_available():
        yield 0, 1
        return
    rank, size, attempt = (int(os.environ.get(v, "0")) for v in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"))
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    master = rank == 0 and not served
    meeting = dist.TCPStore(address, port, size, master, _PATIENCE)  # type: ignore[attr-defined]
    # The TCP store outlives a crash, with the addresses of killed processes, so every attempt gets its own prefix.
    store = dist.PrefixStore(f"fxgrad/{attempt}", meeting)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    try:
        yield rank, size
    finally:
        dist.destroy_process_group()


def wait_for_others() -> None:
    """Wait until every process has reached this call."""
    if dist.is_initialized():
        dist.barrier()
