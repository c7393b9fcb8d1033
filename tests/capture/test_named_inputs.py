"""A forward with **kwargs: inputs by these names are taken like others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgrad


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor, **others: Tensor) -> Tensor:
        return (self.linear(x) + others["shift"]) * others["scale"]


class Around(nn.Module):
    """As a wrapper of PEFT's hands everything on."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inside(*args, **kwargs)


@pytest.mark.parametrize("model", [Named(), Around(Named())], ids=["named", "around"])
def test_inputs_of_var_keywords_of_tied_sizes(model: nn.Module) -> None:
    model = model.double().eval()

    def example(batch: int) -> tuple[tuple[Tensor], dict[str, Tensor]]:
        x, shift, scale = torch.randn(3, batch, 4, 3, dtype=torch.float64)
        return (x,), {"shift": shift, "scale": scale}

    args, kwargs = example(2)
    converted = fxgrad.convert(model, args, kwargs)
    for batch in (2, 5):
        args, kwargs = example(batch)
        assert torch.equal(converted(*args, **kwargs), model(*args, **kwargs))
        report = fxgrad.check(converted, args, kwargs, original=model)
        assert report.passed and report.completeness_error < 1e-12
