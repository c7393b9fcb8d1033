"""What was measured of the demo's models, kept as JSON, and the page written from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn


def completeness(model: nn.Module, count: int = 20) -> dict[str, float]:
    return {}


def record(results: Path, name: str, model: nn.Module, facts: dict[str, Any]) -> None:
    """Add what was measured of a model to a JSON file, and write the page beside it anew."""
    known = json.loads(results.read_text("utf-8")) if results.exists() else {}
    known[name] = facts
    results.write_text(json.dumps(known, indent=1) + "\n", "utf-8")
