"""Faithfulness: how the model's output changes as parts of the picture are removed in the order of an attribution.

If the most influential parts are removed first (MIF), the target's probability should fall at once; if the least
influential ones are (LIF), it should stay. The area between the two curves, LIF - MIF, is the symmetric relevance gain
(SRG): it cancels the effect that any removal has. Deletion and insertion do the same with single pixels, up to all.

Sources: Samek et al., IEEE TNNLS 2017, arXiv:1509.06321 (MIF, LIF, AOPC); Shrikumar et al., ICML 2017, arXiv:1704.02685
(log-odds); Blücher, Vielhaben, Strodthoff, TMLR 2024, arXiv:2401.06654 (SRG); Petsiuk et al., RISE, BMVC 2018,
arXiv:1806.07421 (deletion, insertion).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from fxgrad.errors import InputError
from fxgrad.metrics.metric import Measured, Metric, curve_metrics
from fxgrad.metrics.removal import Removal
from fxgrad.metrics.sharing import distinct

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of the parts that are removed."""


@dataclass(frozen=True, eq=False)
class Answer:
    """The model's answer for a target; all tensors are float64 and have the same shape.

    Attributes:
        probability: the target's probability.
        log_probability: its logarithm, computed without overflow.
        hit: 1 where the model predicts the target, else 0.
    """

    probability: Tensor
    log_probability: Tensor
    hit: Tensor


def answer(logits: Tensor, target: Tensor, *, multilabel: bool = False) -> Answer:
    """The answer of logits for a target.

    Args:
        logits: (batch, classes), of any floating dtype.
        target: class indices, int64 (batch,).
        multilabel: classes are independent: the probability is the sigmoid, and a logit above 0 predicts the class. By
            default the softmax, and the largest logit.

    Returns:
        The answer, each tensor (batch,).

    Example:
        >>> logits = torch.tensor([[0.0, 0.0], [0.0, -1.0]])
        >>> found = answer(logits, torch.tensor([0, 1]))
        >>> found.probability[0].item(), found.hit.tolist()
        (0.5, [1.0, 0.0])
    """
    logits = logits.double()
    own = logits.gather(1, target[:, None])[:, 0]
    if multilabel:
        return Answer(own.sigmoid(), F.logsigmoid(own), (own > 0).double())
    log_probability = logits.log_softmax(1).gather(1, target[:, None])[:, 0]
    return Answer(log_probability.exp(), log_probability, (logits.argmax(1) == target).double())


def removal_curve(
    removal: Removal,
    x: Tensor,
    scores: Tensor,
    target: Tensor,
    *,
    most_first: bool = True,
    fractions: Sequence[float] = FRACTIONS,
    multilabel: bool = False,
    batch: int = 256,
) -> Answer:
    """The model's answers as more and more parts are removed.

    Args:
        removal: `Dropping` for tokens, `Replacing` for patches or pixels.
        x: pictures (pictures, C, H, W).
        scores: influence of each part, (..., pictures, parts); leading axes are several attributions of the same
            pictures. Among equal scores, the part with the lower number counts as more influential.
        target: class indices, int64 (pictures,).
        most_first: remove the most influential parts first, else the least.
        fractions: shares of the parts to remove, each rounded to whole parts.
        multilabel: as for `answer`.
        batch: pictures per forward pass. Where attributions agree on the parts to keep, one pass serves them.

    Returns:
        The answers, each tensor (..., pictures, fractions).

    Raises:
        InputError: scores that do not fit the pictures or the grid, or that are not finite.

    Example:
        >>> from fxgrad.metrics.removal import Replacing
        >>> model = torch.nn.Flatten()
        >>> x = torch.tensor([[[[3.0, 0.0], [0.0, 1.0]]]])
        >>> curve = removal_curve(Replacing(model, (2, 2)), x, x.flatten(1), torch.tensor([0]), fractions=(0.25, 1))
        >>> curve.hit.tolist(), curve.probability[0, 1].item()
        ([[0.0, 1.0]], 0.25)

    Source: Samek et al., arXiv:1509.06321, eq. 8 and 12.
    """
    parts = removal.grid[0] * removal.grid[1]
    if scores.shape[-2:] != (len(x), parts):
        raise InputError(
            f"scores of shape {tuple(scores.shape)} do not fit {len(x)} pictures of {removal.grid[0]} x "
            f"{removal.grid[1]} parts: their last two axes must be ({len(x)}, {parts})."
        )
    if not scores.isfinite().all():
        raise InputError("some scores are NaN or infinite, so that the parts have no order.")
    flat = scores.reshape(-1, parts)
    order = flat.argsort(dim=1, descending=True, stable=True).to(x.device)
    order = order if most_first else order.flip(1)
    picture = torch.arange(len(x), device=x.device).repeat(len(flat) // len(x))
    prepared, answers = removal.prepare(x), []
    for fraction in fractions:
        keep = order[:, round(fraction * parts) :]
        kept = torch.zeros(len(keep), parts, dtype=torch.bool, device=keep.device).scatter_(1, keep, True)
        rows, place = distinct(picture, kept)
        some = [rows[start : start + batch] for start in range(0, len(rows), batch)]
        logits = torch.cat([removal(tuple(p[picture[r]] for p in prepared), keep[r]) for r in some])
        answers.append(answer(logits[place], target.to(x.device)[picture], multilabel=multilabel))
    shape = (*scores.shape[:-1], len(answers))
    return Answer(
        *(
            torch.stack([getattr(a, part) for a in answers], -1).reshape(shape).cpu()
            for part in ("probability", "log_probability", "hit")
        )
    )


def area(values: Tensor, at: Sequence[float]) -> Tensor:
    """The mean height of a curve: the area by the trapezoid rule, divided by the length of its base.

    Args:
        values: (..., points).
        at: the points' positions, ascending.

    Returns:
        A tensor (...).

    Example:
        >>> area(torch.tensor([0.0, 1.0, 1.0]), (0.0, 0.5, 1.0)).item()
        0.75
    """
    if len(at) == 1:
        return values[..., 0]
    return torch.trapezoid(values, torch.tensor(at, dtype=values.dtype)) / (at[-1] - at[0])


def faithfulness(
    whole: Answer, most: Answer, least: Answer, fractions: Sequence[float] = FRACTIONS
) -> dict[str, Tensor]:
    """MIF, LIF and SRG of three measures for every picture: mean heights over the fractions.

    Args:
        whole: the answers to the whole pictures, each tensor (pictures,).
        most, least: the curves with the most and the least influential parts removed first, (..., pictures, fractions).
        fractions: shares that were removed.

    Returns:
        "mif_accuracy" and so on -> (..., pictures), float64. *accuracy* is the share of fractions at which the model
        still predicts the target, *aopc* the mean of p - p_removed, *lodds* the mean of log p - log p_removed. *srg* is
        LIF - MIF of accuracy, p_removed and log p_removed, so that higher is better for all three.

    Example:
        >>> def two(a, b): return Answer(*(torch.tensor([a, b]).double(),) * 3)
        >>> scores = faithfulness(Answer(*(torch.tensor(1.0),) * 3), two(0.5, 0.0), two(1.0, 0.5), (0, 1))
        >>> scores["mif_aopc"].item(), scores["lif_aopc"].item(), scores["srg_aopc"].item()
        (0.75, 0.25, 0.5)

    Source: Samek et al., arXiv:1509.06321, eq. 12; Blücher et al., arXiv:2401.06654, eq. 3.
    """
    found = {}
    for name, curve in (("mif", most), ("lif", least)):
        found[f"{name}_accuracy"] = area(curve.hit, fractions)
        found[f"{name}_aopc"] = area(whole.probability[..., None] - curve.probability, fractions)
        found[f"{name}_lodds"] = area(whole.log_probability[..., None] - curve.log_probability, fractions)
    found["srg_accuracy"] = found["lif_accuracy"] - found["mif_accuracy"]
    for drop in ("aopc", "lodds"):
        found[f"srg_{drop}"] = found[f"mif_{drop}"] - found[f"lif_{drop}"]
    return found


def deletion_insertion(
    removal: Removal,
    x: Tensor,
    scores: Tensor,
    target: Tensor,
    *,
    steps: int = 10,
    multilabel: bool = False,
    batch: int = 256,
) -> dict[str, Tensor]:
    """The mean probability of the target as pixels are deleted, and as they are inserted.

    Args:
        removal: `Replacing(model, (H, W), "blur")`, say.
        x, scores, target, multilabel, batch: as for `removal_curve`.
        steps: number of steps between the whole picture and the baseline.

    Returns:
        "deletion" (lower is better) and "insertion" (higher is better) -> (..., pictures), float64.

    Raises:
        InputError: as for `removal_curve`.

    Example:
        >>> from fxgrad.metrics.removal import Replacing
        >>> x = torch.tensor([[[[3.0, 0.0], [0.0, 1.0]]]])
        >>> removal = Replacing(torch.nn.Flatten(), (2, 2))
        >>> found = deletion_insertion(removal, x, x.flatten(1), torch.tensor([0]), steps=4)
        >>> bool(found["deletion"] < found["insertion"])
        True

    Source: Petsiuk et al., RISE, arXiv:1806.07421, section 4.3.
    """
    # Both ends are the same for all scores: the whole picture, and its baseline.
    at = [step / steps for step in range(steps + 1)]
    any_order = torch.zeros(len(x), scores.shape[-1])
    ends = removal_curve(removal, x, any_order, target, fractions=(0, 1), multilabel=multilabel, batch=batch)
    ends_of_all = ends.probability.expand(*scores.shape[:-1], 2)

    def curve(most_first: bool) -> Tensor:
        middle = removal_curve(
            removal, x, scores, target, most_first=most_first, fractions=at[1:-1], multilabel=multilabel, batch=batch
        )
        return area(torch.cat([ends_of_all[..., :1], middle.probability, ends_of_all[..., 1:]], -1), at)

    # Inserting the most influential first is removing the least influential first, in reverse.
    return {"deletion": curve(True), "insertion": curve(False)}


def measured_faithfulness(measured: Measured, removal: Removal, scores: Tensor) -> dict[str, Tensor]:
    """Metric -> values, by one removal of parts that have these scores; see `faithfulness`.

    Args:
        measured: the attributions; how they are measured otherwise.
        removal: of the parts.
        scores: the influence of each part, (attributions, pictures, parts).
    """
    m = measured
    most, least = (
        removal_curve(
            removal,
            m.x,
            scores,
            m.target,
            most_first=first,
            fractions=m.fractions,
            multilabel=m.multilabel,
            batch=m.batch,
        )
        for first in (True, False)
    )
    whole = answer(m.logits.cpu(), m.target.cpu(), multilabel=m.multilabel)
    return faithfulness(whole, most, least, m.fractions)


def _replaced(measured: Measured) -> dict[str, Tensor]:
    """Metric -> values, from replacing pixels; empty if there is no removal of pixels."""
    m = measured
    if m.pixels is None:
        return {}
    scores = m.maps.flatten(2)
    return deletion_insertion(m.pixels, m.x, scores, m.target, steps=m.steps, multilabel=m.multilabel, batch=m.batch)


def _faithful(measured: Measured) -> dict[str, Tensor]:
    """Metric -> values, from dropping tokens."""
    return measured_faithfulness(measured, measured.tokens, measured.scores)


def _dropping(name: str, measured: Measured) -> Tensor:
    return measured.once(_faithful)[name]


def _replacing(name: str, measured: Measured) -> Tensor | None:
    return measured.once(_replaced).get(name)


METRICS = (
    *curve_metrics(_dropping),
    Metric("deletion", "lower", partial(_replacing, "deletion")),
    Metric("insertion", "higher", partial(_replacing, "insertion")),
)
