"""Whether the hub can be reached, asked once; without it, its client looks in its cache only."""

from __future__ import annotations

import contextlib
import urllib.error
import urllib.request
from collections.abc import Iterator


def hub_reachable(timeout: float = 3.0) -> bool:
    """Whether the hub answers within `timeout` seconds; asked once, since the hub's client retries for a minute."""
    from huggingface_hub import constants

    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=timeout).close()
    except urllib.error.HTTPError:
        return True  # an HTTP error is an answer
    except (OSError, ValueError):
        return False
    return True


@contextlib.contextmanager
def hub(reachable: bool) -> Iterator[None]:
    """During one call, restrict the hub's client to its cache if the hub is unreachable."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not reachable
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
