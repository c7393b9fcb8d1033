"""A linear probe on the frozen features: the photographs are the classes, crops of them the samples.

It is trained on two quarters of each photograph and tested on the other two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from bench.evidence.photographs import Photograph, crop, normalized

SIZE, TRAINED, HELD = 224, 24, 12
"""Side of a crop, and how many of each photograph."""


@dataclass(frozen=True)
class Probe:
    """A trained head, and what it says about crops of the held-out quarters.

    Attributes:
        weight, bias: (classes, features) and (classes,).
        labels, predicted: (crops,), int64.
    """

    weight: Tensor
    bias: Tensor
    labels: Tensor
    predicted: Tensor

    def head(self) -> nn.Linear:
        """The head as a module."""
        head = nn.Linear(self.weight.shape[1], self.weight.shape[0])
        head.load_state_dict({"weight": self.weight, "bias": self.bias})
        return head.eval().requires_grad_(False)


def train(backbone: Callable[[Tensor], Tensor], pictures: Sequence[Photograph], seed: int = 0) -> Probe:
    """Train on crops of the one quarters, with changes of light; test on crops of the others.

    Args:
        backbone: (batch, 3, SIZE, SIZE) -> (batch, features).
        pictures: the classes.
        seed: of the crops.
    """
    generator = np.random.default_rng(seed)
    seen, labels = _features(backbone, [p.trained for p in pictures], TRAINED, generator, jitter=0.2)
    weight, bias = fitted(seen, labels)
    held, truth = _features(backbone, [p.held for p in pictures], HELD, generator)
    return Probe(weight, bias, truth, (held @ weight.T + bias).argmax(1))


def fitted(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression on standardized features, (samples, features), written as one linear layer.

    Returns:
        weight (classes, features), and bias (classes,), float32.
    """
    mean, std = features.double().mean(0), features.double().std(0).clamp(min=1e-6)
    found = LogisticRegression(C=1.0, max_iter=5000).fit(((features - mean) / std).numpy(), labels.numpy())
    weight = torch.from_numpy(found.coef_) / std
    return weight.float(), (torch.from_numpy(found.intercept_) - weight @ mean).float()


def _features(
    backbone: Callable[[Tensor], Tensor],
    images: Sequence[tuple[Image.Image, Image.Image]],
    count: int,
    generator: np.random.Generator,
    jitter: float = 0.0,
) -> tuple[Tensor, Tensor]:
    rows = []
    for quarters in images:
        pixels = torch.stack([crop(quarters[i % 2], generator, SIZE, 0.4, jitter) for i in range(count)])
        with torch.no_grad():
            rows.append(backbone(normalized(pixels)))
    return torch.cat(rows), torch.arange(len(images)).repeat_interleave(count)
