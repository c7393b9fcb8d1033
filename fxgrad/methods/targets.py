"""Targets: functions from the outputs of a model to one number per example, which is attributed.

A target is a class's number or name, a tensor with one index per example, one of the classes below, or any function of
the outputs. A list of targets gives one attribution each. A target always sees the outputs of a whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Union

from torch import Tensor


@dataclass(frozen=True)
class Contrast:
    """The difference of two targets, a - b: what speaks for a rather than for b.

    Example:
        >>> import torch
        >>> from fxgrad.methods.scoring import scored
        >>> scored(Contrast(2, 0), torch.tensor([[1.0, 5.0, 7.0]])).score(torch.tensor([[1.0, 5.0, 7.0]]))
        tensor([6.])
    """

    a: Any
    b: Any


@dataclass(frozen=True)
class Token:
    """For language models: the logit of a token at a position of the output. `Token()` is the next token.

    Attributes:
        position: the output's position, which predicts the next token; negative numbers count from the end. An int64
            tensor (batch,) has one per example, as where texts are padded: attention_mask.sum(1) - 1.
        id: the token's number, or the token itself as a string, if attribute has class_names=tokenizer.get_vocab(); an
            int64 tensor (batch,) has one number per example; None: the token with the largest logit.
    """

    position: int | Tensor = -1
    id: int | str | Tensor | None = None


@dataclass(frozen=True)
class Probability:
    """The softmax probability of a class. No backward makes its attribution complete."""

    target: Any


@dataclass(frozen=True)
class Finer:
    """What sets a class apart from those that the model finds most alike: its logit less gamma times their mean.

    With `gradcam` it is FinerCAM; it works with every method.

    Attributes:
        target: the class, as for `fxgrad.attribute`.
        others: how many classes to compare it with, those whose logits are nearest to its own.
        gamma: the weight of their mean.

    Source: Zhang et al., Finer-CAM, CVPR 2025, arXiv:2501.11309, section 3.

    Example:
        >>> import torch
        >>> from fxgrad.methods.scoring import scored
        >>> logits = torch.tensor([[1.0, 5.0, 7.0, 6.5]])
        >>> scored(Finer(2, others=2), logits).score(logits)
        tensor([1.2500])
    """

    target: Any = None
    others: int = 3
    gamma: float = 1.0


@dataclass(frozen=True)
class Similarity:
    """For models whose output is an embedding: its cosine with another embedding.

    The output's length is held, as a normalization's scale is, so the attribution is complete.

    Attributes:
        embedding: (width,), or (batch, width) for one per example; need not be a unit vector.
        scale: a factor, such as a model's temperature.
        label: a name for the embedding, such as the prompt.
    """

    embedding: Tensor
    scale: float = 1.0
    label: str = "the embedding given"


Target = Union[None, int, str, Tensor, Contrast, Token, Probability, Finer, Similarity, Callable[[Any], Tensor]]
"""All forms of a target; None is the class with the largest logit of each example."""
