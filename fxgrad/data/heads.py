"""A model whose head is one logit, read as one of two classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TwoClasses(nn.Module):
    """From a model of one logit z per picture, the logit of class 1, to the two logits 0 and z.

    Their softmax is the sigmoid of z and of -z; the margin of a class over the other is z or -z.

    Args:
        model: from pictures to (batch, 1).

    Example:
        >>> TwoClasses(nn.Linear(1, 1, bias=False))(torch.zeros(2, 1)).shape
        torch.Size([2, 2])
    """

    num_classes = 2

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """Pictures -> logits (batch, 2)."""
        logit: Tensor = self.model(image)
        return torch.cat([torch.zeros_like(logit), logit], dim=1)
