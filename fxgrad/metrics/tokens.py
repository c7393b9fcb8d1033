"""Faithfulness on texts: what a classifier says as tokens are removed, in the order of an attribution.

    removal = TokenRemoval(model, "hide")
    eraser(removal, inputs, scores, target, counted)     # comprehensiveness and sufficiency, over shares of the tokens
    token_curve(removal, inputs, scores, target, counted)     # as `fxgrad.metrics.removal_curve`

`counted`, bool (texts, tokens), is the tokens that may be removed: special tokens and padding are none of them.

Sources: DeYoung et al., ERASER: A Benchmark to Evaluate Rationalized NLP Models, ACL 2020, arXiv:1911.03429
(comprehensiveness, sufficiency); Samek et al., arXiv:1509.06321 (MIF, LIF); Blücher et al., arXiv:2401.06654 (SRG).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.metrics.curves import FRACTIONS, Answer, answer
from fxgrad.metrics.sharing import distinct
from fxgrad.metrics.token_removal import TokenRemoval

BINS = (0.01, 0.05, 0.1, 0.2, 0.5)
"""ERASER's shares of the tokens that a rationale has."""


def comprehensiveness(
    removal: TokenRemoval,
    inputs: Mapping[str, Tensor],
    rationales: Tensor,
    target: Tensor,
    counted: Tensor,
    *,
    multilabel: bool = False,
    batch: int = 256,
) -> Tensor:
    """How much less likely the target is without the rationale: m(x) - m(x without r).

    Args:
        removal: the classifier, and how tokens are removed.
        inputs: its inputs: input_ids, and further ones by name, each (texts, tokens).
        rationales: the tokens of the rationale, bool (..., texts, tokens); leading axes are several rationales of the
            same texts.
        target: class indices, int64 (texts,); in ERASER, the class that the model predicts.
        counted: the tokens that may be removed, bool (texts, tokens).
        multilabel: classes are independent: m is the sigmoid. By default the softmax.
        batch: texts per forward pass. Where rationales agree, one pass serves them.

    Returns:
        float64 (..., texts), high where the model needs the rationale; NaN where a text would have no token left.

    Raises:
        InputError: shapes that do not fit; or as for `TokenRemoval`.

    Example:
        >>> from fxgrad.metrics import TokenRemoval
        >>> def counts_sevens(input_ids, attention_mask):
        ...     sevens = ((input_ids == 7) & attention_mask.bool()).sum(1).double()
        ...     return torch.stack([torch.zeros_like(sevens), 9 * sevens], 1)
        >>> inputs = {"input_ids": torch.tensor([[0, 5, 7, 5]])}
        >>> counted, rationale = inputs["input_ids"] > 0, inputs["input_ids"] == 7
        >>> drop = comprehensiveness(TokenRemoval(counts_sevens), inputs, rationale, torch.tensor([1]), counted)
        >>> round(drop.item(), 3)
        0.5

    Source: DeYoung et al., arXiv:1911.03429, eq. 1.
    """
    found = _probabilities(removal, inputs, target, counted, [~rationales], multilabel, batch)
    return found[..., 0] - found[..., 1]


def sufficiency(
    removal: TokenRemoval,
    inputs: Mapping[str, Tensor],
    rationales: Tensor,
    target: Tensor,
    counted: Tensor,
    *,
    multilabel: bool = False,
    batch: int = 256,
) -> Tensor:
    """How much less likely the target is with nothing but the rationale: m(x) - m(r).

    Args:
        removal, inputs, rationales, target, counted, multilabel, batch: as for `comprehensiveness`.

    Returns:
        float64 (..., texts), low where the rationale is enough for the model; NaN as for `comprehensiveness`.

    Raises:
        InputError: as for `comprehensiveness`.

    Example:
        >>> from fxgrad.metrics import TokenRemoval
        >>> def counts_sevens(input_ids, attention_mask):
        ...     sevens = ((input_ids == 7) & attention_mask.bool()).sum(1).double()
        ...     return torch.stack([torch.zeros_like(sevens), 9 * sevens], 1)
        >>> inputs = {"input_ids": torch.tensor([[0, 5, 7, 5]])}
        >>> counted, rationale = inputs["input_ids"] > 0, inputs["input_ids"] == 7
        >>> sufficiency(TokenRemoval(counts_sevens), inputs, rationale, torch.tensor([1]), counted).item()
        0.0

    Source: DeYoung et al., arXiv:1911.03429, eq. 2.
    """
    found = _probabilities(removal, inputs, target, counted, [rationales], multilabel, batch)
    return found[..., 0] - found[..., 1]


def eraser(
    removal: TokenRemoval,
    inputs: Mapping[str, Tensor],
    scores: Tensor,
    target: Tensor,
    counted: Tensor,
    *,
    bins: Sequence[float] = BINS,
    multilabel: bool = False,
    batch: int = 256,
) -> dict[str, Tensor]:
    """Comprehensiveness and sufficiency of the most influential tokens, each the mean over shares of the tokens (AOPC).

    Args:
        removal, inputs, target, counted, multilabel, batch: as for `comprehensiveness`.
        scores: influence of each token, (..., texts, tokens). Among equal ones, the earlier token is more influential.
        bins: shares of the counted tokens that are a rationale, each rounded up to whole tokens.

    Returns:
        "comprehensiveness" (higher is better) and "sufficiency" (lower is better) -> (..., texts), float64.

    Raises:
        InputError: as for `comprehensiveness`; or scores that are not finite.

    Example:
        >>> from fxgrad.metrics import TokenRemoval
        >>> def counts_sevens(input_ids, attention_mask):
        ...     sevens = ((input_ids == 7) & attention_mask.bool()).sum(1).double()
        ...     return torch.stack([torch.zeros_like(sevens), 9 * sevens], 1)
        >>> inputs = {"input_ids": torch.tensor([[0, 5, 7, 5]])}
        >>> counted, scores = inputs["input_ids"] > 0, (inputs["input_ids"] == 7).double()
        >>> found = eraser(TokenRemoval(counts_sevens), inputs, scores, torch.tensor([1]), counted)
        >>> round(found["comprehensiveness"].item(), 3), found["sufficiency"].item()
        (0.5, 0.0)

    Source: DeYoung et al., arXiv:1911.03429, section 4.2. The mean is over the bins, as in their published code; their
    formula counts an empty bin, too.
    """
    rank, count = _ranked(scores, counted), counted.sum(1).double()
    # 0.1 * 30 may be a little more than 3.
    tops = [rank < (count * share - 1e-9).ceil()[:, None] for share in bins]
    keeps = [*(~top for top in tops), *tops]
    found = _probabilities(removal, inputs, target, counted, keeps, multilabel, batch)
    drops = found[..., :1] - found[..., 1:]
    return {
        "comprehensiveness": drops[..., : len(tops)].mean(-1),
        "sufficiency": drops[..., len(tops) :].mean(-1),
    }


def token_curve(
    removal: TokenRemoval,
    inputs: Mapping[str, Tensor],
    scores: Tensor,
    target: Tensor,
    counted: Tensor,
    *,
    most_first: bool = True,
    fractions: Sequence[float] = FRACTIONS,
    multilabel: bool = False,
    batch: int = 256,
) -> Answer:
    """The classifier's answers as more and more tokens are removed, for `fxgrad.metrics.faithfulness`.

    Args:
        removal, inputs, target, counted, multilabel, batch: as for `comprehensiveness`.
        scores: as for `eraser`.
        most_first: remove the most influential tokens first, else the least.
        fractions: shares of the counted tokens to remove, each rounded to whole tokens.

    Returns:
        The answers, each tensor (..., texts, fractions); NaN where a text would have no token left.

    Raises:
        InputError: as for `eraser`.

    Example:
        >>> from fxgrad.metrics import TokenRemoval
        >>> def counts_sevens(input_ids, attention_mask):
        ...     sevens = ((input_ids == 7) & attention_mask.bool()).sum(1).double()
        ...     return torch.stack([torch.ones_like(sevens), 9 * sevens], 1)
        >>> inputs = {"input_ids": torch.tensor([[0, 5, 7, 5]])}
        >>> counted, scores = inputs["input_ids"] > 0, (inputs["input_ids"] == 7).double()
        >>> removal, target = TokenRemoval(counts_sevens), torch.tensor([1])
        >>> [token_curve(removal, inputs, scores, target, counted, most_first=first, fractions=(0.3, 0.7)).hit.tolist()
        ...  for first in (True, False)]
        [[[0.0, 0.0]], [[1.0, 1.0]]]

    Source: Samek et al., arXiv:1509.06321, eq. 8 and 12.
    """
    rank, count = _ranked(scores, counted), counted.sum(1).double()
    gone = [(count * share).round()[:, None] for share in fractions]
    keeps = [rank >= some if most_first else rank < count[:, None] - some for some in gone]
    return _answers(removal, inputs, target, counted, torch.stack(keeps), multilabel, batch)


def _ranked(scores: Tensor, counted: Tensor) -> Tensor:
    """The place of each counted token, the most influential first, int64 (..., texts, tokens); others come last."""
    own = scores.to(counted.device)
    if own.shape[-2:] != counted.shape or counted.dtype is not torch.bool:
        raise InputError(
            f"scores of shape {tuple(scores.shape)} do not fit tokens that are counted, bool {tuple(counted.shape)} "
            f"(this one is {counted.dtype}): their last two axes must be the same."
        )
    if not own[counted.expand(own.shape)].isfinite().all():
        raise InputError("some scores are NaN or infinite, so that the tokens have no order.")
    order = own.masked_fill(~counted, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    return order.argsort(dim=-1)


def _probabilities(
    removal: TokenRemoval,
    inputs: Mapping[str, Tensor],
    target: Tensor,
    counted: Tensor,
    keeps: Sequence[Tensor],
    multilabel: bool,
    batch: int,
) -> Tensor:
    """The target's probability with all tokens, then with each choice of them, (..., texts, 1 + choices)."""
    if any(keep.dtype is not torch.bool or keep.shape[-2:] != counted.shape for keep in keeps):
        given = keeps[0]
        raise InputError(
            f"a rationale is bool (..., texts, tokens), here {tuple(counted.shape)} at the end; this one is "
            f"{given.dtype} {tuple(given.shape)}."
        )
    own = [keep.to(counted.device) for keep in keeps]
    whole = torch.ones_like(own[0])
    return _answers(removal, inputs, target, counted, torch.stack([whole, *own]), multilabel, batch).probability


def _answers(
    removal: TokenRemoval,
    inputs: Mapping[str, Tensor],
    target: Tensor,
    counted: Tensor,
    keep: Tensor,
    multilabel: bool,
    batch: int,
) -> Answer:
    """The answers with some of the tokens, bool (choices, ..., texts, tokens) -> each tensor (..., texts, choices)."""
    prepared = removal.prepare(inputs, counted)
    there = removal.there(prepared)
    counted, keep = counted.to(there.device), keep.to(there.device)
    flat = (keep | ~counted).reshape(-1, *counted.shape[1:])
    text = torch.arange(len(counted), device=counted.device).repeat(len(flat) // len(counted))
    empty = ~(flat & there[text]).any(1)
    flat = flat | empty[:, None]  # the model is not asked about nothing
    rows, place = distinct(text, flat)
    some = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    logits = torch.cat([removal({name: v[text[r]] for name, v in prepared.items()}, flat[r]) for r in some])
    found = answer(logits[place], target.to(there.device)[text], multilabel=multilabel)
    return Answer(
        *(
            getattr(found, part).masked_fill(empty, torch.nan).reshape(keep.shape[:-1]).movedim(0, -1).cpu()
            for part in ("probability", "log_probability", "hit")
        )
    )
