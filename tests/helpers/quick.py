"""Options with which methods that run a model many times are quick enough to be asked for everywhere."""

from __future__ import annotations

from typing import Any

QUICK: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"n_steps": 4},
    "smoothgrad": {"samples": 4},
    "shift_averaged": {"shifts": 2},
    "biattn": {"n_steps": 3},
    "rise": {"samples": 20},
    "kernel_shap": {"samples": 60},
}
