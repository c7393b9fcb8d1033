"""Does an attribution lie on the tokens that people marked as the reason? Per text, against their rationale.

Special tokens and padding do not count. These metrics measure agreement with people, not faithfulness to the model.

Source: DeYoung et al., ERASER: A Benchmark to Evaluate Rationalized NLP Models, ACL 2020, arXiv:1911.03429.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.metrics import segmentation

OVERLAP = 0.5
"""Intersection over union from which a piece of text counts as found."""


def token_precision(scores: Tensor, rationales: Tensor, counted: Tensor) -> Tensor:
    """The area under each text's precision-recall curve, its tokens ranked by their attribution: average precision.

    Args:
        scores: influence of each token, floating point (..., texts, tokens).
        rationales: the tokens that people marked, bool (texts, tokens).
        counted: the tokens that are ranked, bool (texts, tokens).

    Returns:
        float64 (..., texts); NaN for a text with no token of a rationale, or with no other one.

    Raises:
        InputError: shapes that do not fit.

    Example:
        >>> scores, counted = torch.tensor([[9.0, 3.0, 2.0, 1.0]]), torch.tensor([[False, True, True, True]])
        >>> token_precision(scores, torch.tensor([[False, True, False, True]]), counted)
        tensor([0.8333], dtype=torch.float64)

    Source: DeYoung et al., arXiv:1911.03429, section 4.1, and `sklearn.metrics.average_precision_score`, which their
    code calls for texts of both kinds of tokens.
    """
    scores, truth = _of(scores, rationales, counted)
    # What does not count comes last, where it takes no part in the precision ahead of it.
    ranked = scores.masked_fill(~counted, -torch.inf)
    found = segmentation.average_precision(ranked[..., None, :], truth[..., None, :])
    return found.where((truth | ~counted).logical_not().any(-1), torch.nan)


def top_tokens(scores: Tensor, counted: Tensor, count: Tensor) -> Tensor:
    """The most influential tokens of each text.

    Args:
        scores: influence of each token, floating point (..., texts, tokens). Among equal ones, the earlier comes first.
        counted: the tokens to choose from, bool (texts, tokens).
        count: how many to choose, int64 (texts,).

    Returns:
        bool (..., texts, tokens).

    Raises:
        InputError: shapes that do not fit.

    Example:
        >>> counted = torch.tensor([[False, True, True, True]])
        >>> top_tokens(torch.tensor([[9.0, 1.0, 3.0, 2.0]]), counted, torch.tensor([2])).tolist()
        [[False, False, True, True]]
    """
    scores, _ = _of(scores, counted, counted)
    order = scores.masked_fill(~counted, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    return (order.argsort(dim=-1) < count[:, None]) & counted


def token_f1(chosen: Tensor, rationales: Tensor, counted: Tensor) -> Tensor:
    """The harmonic mean of precision and recall of chosen tokens.

    Args:
        chosen: the tokens that an attribution chooses, bool (..., texts, tokens).
        rationales, counted: as for `token_precision`.

    Returns:
        float64 (..., texts); NaN for a text without a rationale.

    Raises:
        InputError: shapes that do not fit.

    Example:
        >>> chosen, rationale = torch.tensor([[True, True, False]]), torch.tensor([[True, False, True]])
        >>> token_f1(chosen, rationale, torch.ones(1, 3, dtype=torch.bool)).item()
        0.5

    Source: DeYoung et al., arXiv:1911.03429, section 4.1.
    """
    chosen, truth = _of(chosen, rationales, counted)
    chosen = chosen & counted
    both, all = (chosen & truth).sum(-1).double(), (chosen.sum(-1) + truth.sum(-1)).double()
    return (2 * both / all).where(truth.any(-1), torch.nan)


def iou_f1(chosen: Tensor, rationales: Tensor, counted: Tensor, *, least: float = OVERLAP) -> Tensor:
    """The harmonic mean of precision and recall of chosen pieces of text, which are runs of tokens.

    A chosen piece is a hit if its intersection over union with some marked piece is at least `least`. Precision is the
    hits over the chosen pieces, recall the hits over the marked ones.

    Args:
        chosen, rationales, counted: as for `token_f1`.
        least: the overlap from which on a piece is a hit.

    Returns:
        float64 (..., texts); NaN for a text without a rationale.

    Raises:
        InputError: shapes that do not fit.

    Example:
        >>> chosen = torch.tensor([[True, True, False, True, False]])
        >>> rationale = torch.tensor([[True, False, False, False, True]])
        >>> iou_f1(chosen, rationale, torch.ones(1, 5, dtype=torch.bool)).item()
        0.5

    Source: DeYoung et al., arXiv:1911.03429, section 4.1; per text, where they average precision and recall first.
    """
    chosen, truth = _of(chosen, rationales, counted)
    chosen = chosen & counted
    pairs = zip(chosen.flatten(0, -2).tolist(), truth.flatten(0, -2).tolist())
    found = [_pieces_f1(_runs(own), _runs(marked), least) for own, marked in pairs]
    return torch.tensor(found, dtype=torch.float64).reshape(chosen.shape[:-1])


def _pieces_f1(chosen: Sequence[range], marked: Sequence[range], least: float) -> float:
    if not marked:
        return torch.nan
    hits = sum(max(_iou(piece, one) for one in marked) >= least for piece in chosen)
    return 2 * hits / (len(chosen) + len(marked))


def _iou(one: range, other: range) -> float:
    both = max(0, min(one.stop, other.stop) - max(one.start, other.start))
    return both / (len(one) + len(other) - both)


def _runs(row: Sequence[bool]) -> list[range]:
    """The runs of true values.

    Example:
        >>> _runs([True, True, False, True])
        [range(0, 2), range(3, 4)]
    """
    starts = [i for i, here in enumerate(row) if here and not (i and row[i - 1])]
    return [range(i, next((j for j in range(i, len(row)) if not row[j]), len(row))) for i in starts]


def _of(values: Tensor, rationales: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Values, and the counted tokens of the rationales, both (..., texts, tokens)."""
    shapes = {rationales.shape, counted.shape, values.shape[-2:]}
    if len(shapes) > 1 or counted.dim() != 2 or {rationales.dtype, counted.dtype} != {torch.bool}:
        raise InputError(
            "values of tokens are (..., texts, tokens), and rationales and what is counted bool (texts, tokens); these "
            f"are {tuple(values.shape)}, {tuple(rationales.shape)} of {rationales.dtype}, {tuple(counted.shape)} of "
            f"{counted.dtype}."
        )
    return values, (rationales & counted).expand(values.shape)
