"""How well a model of the demo reads held-out canvases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fxgrad.demo.canvases import canvas
from fxgrad.demo.model import CFG, preprocess


@dataclass(frozen=True)
class Score:
    """How well a model reads canvases; every number is a share, from 0 to 1.

    Attributes:
        accuracy: correct labels among all ten per canvas; predicting no digit at all scores 0.8.
        recall: shown digits that are predicted.
        exact_match: canvases with all ten labels correct.
        both: canvases whose two largest logits are those of the two shown digits; needs no threshold.
    """

    accuracy: float
    recall: float
    exact_match: float
    both: float


@torch.no_grad()
def evaluate(model: nn.Module, count: int = 2000, split: str = "heldout") -> Score:
    """Score a model on canvases 0 to ``count - 1`` of a split; a logit above 0 predicts a digit.

    Args:
        model: from preprocessed float32 (N, 1, 48, 48) to logits (N, 10); (N, 3, 48, 48) if its `pretrained_cfg` says
            so.
        count: number of canvases, at least 1.
        split: "heldout" or "train".

    Raises:
        ValueError: ``split`` is neither, or ``count`` is below 1.

    Example:
        >>> from fxgrad.demo.models import vit
        >>> evaluate(vit(), count=50).accuracy > 0.9
        True
    """
    if count < 1:
        raise ValueError(f"count must be 1 or more, got {count}")
    shown, logits = [], []
    for start in range(0, count, 250):
        canvases = [canvas(seed, split, colours=in_colour(model)) for seed in range(start, min(start + 250, count))]
        shown.append(np.stack([c.target for c in canvases]) > 0)
        logits.append(model(preprocess(np.stack([c.image for c in canvases]))).numpy())
    truth, scores = np.concatenate(shown), np.concatenate(logits)
    said = scores > 0
    right = truth == said
    # Both found: the lower logit of the two shown digits is above all others.
    both = np.where(truth, scores, np.inf).min(axis=1) > np.where(truth, -np.inf, scores).max(axis=1)
    return Score(float(right.mean()), float(said[truth].mean()), float(right.all(axis=1).mean()), float(both.mean()))


def in_colour(model: nn.Module) -> bool:
    """Whether a model takes coloured canvases; its `pretrained_cfg` says so."""
    cfg = getattr(model, "pretrained_cfg", CFG)
    return bool(cfg["input_size"][0] == 3)
