"""A linear probe on the frozen features: the photographs are the classes, crops and mosaics of them the samples.

It is trained on two quarters of each photograph and tested on the other two. Mosaics are among the samples, since a
probe that has only seen one photograph at a time names both of a mosaic's in one of eight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from bench.evidence.real.mosaics import SIZE, mosaic, pairs
from bench.evidence.real.photographs import Photograph, crop, normalized

TRAINED, HELD, BATCH = 8, 12, 8
"""Crops of each photograph, and how many pictures go at a time."""


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
        return linear(self.weight, self.bias)


def train(backbone: Callable[[Tensor], Tensor], pictures: Sequence[Photograph], seed: int = 0) -> Probe:
    """Train on crops of the one quarters, with changes of light, and on their mosaics; test on crops of the others.

    Args:
        backbone: (batch, 3, SIZE, SIZE) -> (batch, features).
        pictures: the classes.
        seed: of the crops.
    """
    generator, classes = np.random.default_rng(seed), len(pictures)
    single, labels = _crops([p.trained for p in pictures], TRAINED, generator, jitter=0.2)
    swapped = [replace(p, held=p.trained) for p in pictures]
    composed = torch.stack([mosaic(swapped, *pair, seed=seed + 1).pixels for pair in pairs(classes)])
    present = F.one_hot(torch.tensor(pairs(classes)), classes).sum(1)
    truth = torch.cat([F.one_hot(labels, classes), present])
    weight, bias = fitted(_features(backbone, torch.cat([single, composed])), truth)
    held, labels = _crops([p.held for p in pictures], HELD, generator)
    return Probe(weight, bias, labels, (_features(backbone, held) @ weight.T + bias).argmax(1))


def fitted(features: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """One logistic regression for each class, on standardized features, written as one linear layer.

    Args:
        features: (samples, features).
        truth: which classes a sample shows, 0 or 1, (samples, classes).

    Returns:
        weight (classes, features), and bias (classes,), float32.
    """
    mean, std = features.double().mean(0), features.double().std(0).clamp(min=1e-6)
    scaled = ((features - mean) / std).numpy()
    found = [LogisticRegression(C=1.0, max_iter=5000).fit(scaled, column.numpy()) for column in truth.T]
    weight = torch.from_numpy(np.concatenate([one.coef_ for one in found])) / std
    bias = torch.from_numpy(np.concatenate([one.intercept_ for one in found])) - weight @ mean
    return weight.float(), bias.float()


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A head as a module."""
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": weight, "bias": bias})
    return head.eval().requires_grad_(False)


def _crops(
    images: Sequence[tuple[Image.Image, Image.Image]], count: int, generator: np.random.Generator, jitter: float = 0.0
) -> tuple[Tensor, Tensor]:
    found = [crop(pair[i % 2], generator, SIZE, 0.4, jitter) for pair in images for i in range(count)]
    return torch.stack(found), torch.arange(len(images)).repeat_interleave(count)


def _features(backbone: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([backbone(normalized(part)) for part in pixels.split(BATCH)])
