"""Metrics of attributions, each usable alone: from tensors to one number per picture, or text.

    from fxgrad import metrics

    metrics.average_precision(maps, masks)                                    # does it lie where the object is?
    tokens = metrics.Dropping(libra, (14, 14))                                # the model on fewer tokens
    metrics.removal_curve(tokens, x, scores, target, most_first=True)         # what the model says without them
    metrics.eraser(metrics.TokenRemoval(model), inputs, scores, target, counted)   # the same of a text's tokens
    metrics.bootstrap(values)                                                 # means with confidence intervals

`fxgrad.evaluate` runs them all, and yours, over a data set; a `Metric` is what it runs.
"""

from fxgrad.metrics import curves, imputation, of_texts, perturbation, precision, segmentation, shares
from fxgrad.metrics.curves import (
    FRACTIONS,
    Answer,
    answer,
    area,
    deletion_insertion,
    faithfulness,
    removal_curve,
)
from fxgrad.metrics.games import Game, coalitions
from fxgrad.metrics.imputation import Imputing, imputed
from fxgrad.metrics.intervals import Interval, bootstrap, holm, paired, two_level
from fxgrad.metrics.metric import Measured, MeasuredTexts, Metric
from fxgrad.metrics.perturbation import infidelity, max_sensitivity
from fxgrad.metrics.precision import float64_agreement
from fxgrad.metrics.rationales import iou_f1, token_f1, token_precision, top_tokens
from fxgrad.metrics.removal import Dropping, Removal, Replacing, blurred
from fxgrad.metrics.sanity import Alike, Cascade, alike, label_randomisation, parameter_randomisation
from fxgrad.metrics.segmentation import average_precision, iou, own_over_other, pointing_game, relevance_mass
from fxgrad.metrics.shares import completeness
from fxgrad.metrics.similarity import spearman, ssim
from fxgrad.metrics.token_removal import TokenRemoval
from fxgrad.metrics.tokens import comprehensiveness, eraser, sufficiency, token_curve

METRICS = {
    metric.name: metric for metric in (*curves.METRICS, *segmentation.METRICS, *shares.METRICS, *precision.METRICS)
}
"""Every metric of `fxgrad.evaluate` by its name, in the order of the page."""

OF_TEXTS = {metric.name: metric for metric in of_texts.METRICS}
"""Every metric of texts by its name."""

OPTIONAL = {metric.name: metric for metric in (*perturbation.METRICS, *imputation.METRICS)}
"""Metrics that take many forward passes, or attributions, more: measured where they are named."""

__all__ = [
    "FRACTIONS",
    "METRICS",
    "OF_TEXTS",
    "OPTIONAL",
    "Alike",
    "Answer",
    "Cascade",
    "Dropping",
    "Game",
    "Imputing",
    "Interval",
    "Measured",
    "MeasuredTexts",
    "Metric",
    "Removal",
    "Replacing",
    "TokenRemoval",
    "alike",
    "answer",
    "area",
    "average_precision",
    "blurred",
    "bootstrap",
    "coalitions",
    "completeness",
    "comprehensiveness",
    "deletion_insertion",
    "eraser",
    "faithfulness",
    "float64_agreement",
    "holm",
    "imputed",
    "infidelity",
    "iou",
    "iou_f1",
    "label_randomisation",
    "max_sensitivity",
    "own_over_other",
    "paired",
    "parameter_randomisation",
    "pointing_game",
    "relevance_mass",
    "removal_curve",
    "spearman",
    "ssim",
    "sufficiency",
    "token_curve",
    "token_f1",
    "token_precision",
    "top_tokens",
    "two_level",
]
