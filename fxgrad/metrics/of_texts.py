"""Metrics of texts for `fxgrad.evaluate`: from what is measured to one number per text."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fxgrad.metrics import shares
from fxgrad.metrics.curves import answer, faithfulness
from fxgrad.metrics.metric import MeasuredTexts, Metric, curve_metrics
from fxgrad.metrics.precision import PICTURES as FIRST
from fxgrad.metrics.rationales import iou_f1, token_f1, token_precision, top_tokens
from fxgrad.metrics.similarity import spearman
from fxgrad.metrics.tokens import eraser, token_curve


def _faithful(measured: MeasuredTexts) -> dict[str, Tensor]:
    """Metric -> values, from tokens that are removed in both orders."""
    m = measured
    asked = m.removal, m.inputs, m.scores, m.target, m.counted
    most, least = (
        token_curve(*asked, most_first=first, fractions=m.fractions, multilabel=m.multilabel, batch=m.batch)
        for first in (True, False)
    )
    whole = answer(m.logits.cpu(), m.target.cpu(), multilabel=m.multilabel)
    return faithfulness(whole, most, least, m.fractions)


def _erased(measured: MeasuredTexts) -> dict[str, Tensor]:
    m = measured
    return eraser(m.removal, m.inputs, m.scores, m.target, m.counted, multilabel=m.multilabel, batch=m.batch)


def _curve(name: str, measured: MeasuredTexts) -> Tensor:
    return measured.once(_faithful)[name]


def _bins(name: str, measured: MeasuredTexts) -> Tensor:
    return measured.once(_erased)[name]


def _precision(measured: MeasuredTexts) -> Tensor:
    return token_precision(measured.scores, measured.rationales, measured.counted)


def _chosen(measured: MeasuredTexts) -> Tensor:
    """As many tokens as the rationale has."""
    count = (measured.rationales & measured.counted).sum(1)
    return top_tokens(measured.scores, measured.counted, count)


def _token_f1(measured: MeasuredTexts) -> Tensor:
    return token_f1(measured.once(_chosen), measured.rationales, measured.counted)


def _iou_f1(measured: MeasuredTexts) -> Tensor:
    return iou_f1(measured.once(_chosen), measured.rationales, measured.counted)


def _agreement(measured: MeasuredTexts) -> Tensor | None:
    """The rank correlation of the first texts' tokens with those in float64.

    The other texts have no value, nor has one whose tokens have no order in float64, such as a text of one token.
    """
    explain = measured.explain
    # Both are made anew, since methods may draw noise for a batch as a whole.
    exact = None if explain is None else explain(FIRST, True)
    own = None if explain is None or exact is None else explain(FIRST, False)
    if exact is None or own is None:
        return None
    found = torch.full(measured.output.shape, torch.nan, dtype=torch.float64)
    for text, counted in enumerate(measured.counted[: exact.shape[1]]):
        one, other = own[:, text, counted], exact[:, text, counted]
        ordered = (other != other[:, :1]).any(1)
        found[:, text] = spearman(one, other).nan_to_num(0.0).where(ordered, torch.nan)
    return found


METRICS = (
    *curve_metrics(_curve),
    Metric("comprehensiveness", "higher", partial(_bins, "comprehensiveness")),
    Metric("sufficiency", "lower", partial(_bins, "sufficiency")),
    Metric("average_precision", "higher", _precision),
    Metric("token_f1", "higher", _token_f1),
    Metric("iou_f1", "higher", _iou_f1),
    Metric("float64_agreement", "higher", _agreement),
    *shares.METRICS,
)
