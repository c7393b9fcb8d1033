"""Metrics of attributions, each usable alone: from tensors to one number per picture.

    from fxgrad import metrics

    metrics.average_precision(maps, masks)                                    # does it lie where the object is?
    tokens = metrics.Dropping(libra, (14, 14))                                # the model on fewer tokens
    metrics.removal_curve(tokens, x, scores, target, most_first=True)         # what the model says without them
    metrics.bootstrap(values)                                                 # means with confidence intervals

`fxgrad.evaluate` runs them all, and yours, over a data set; a `Metric` is what it runs.
"""

from fxgrad.metrics import curves, imputation, perturbation, precision, segmentation, shares
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
from fxgrad.metrics.metric import Measured, Metric
from fxgrad.metrics.perturbation import infidelity, max_sensitivity
from fxgrad.metrics.precision import float64_agreement
from fxgrad.metrics.removal import Dropping, Removal, Replacing, blurred
from fxgrad.metrics.sanity import Alike, Cascade, alike, label_randomisation, parameter_randomisation
from fxgrad.metrics.segmentation import average_precision, iou, own_over_other, pointing_game, relevance_mass
from fxgrad.metrics.shares import completeness
from fxgrad.metrics.similarity import spearman, ssim

METRICS = {
    metric.name: metric for metric in (*curves.METRICS, *segmentation.METRICS, *shares.METRICS, *precision.METRICS)
}
"""Every metric of `fxgrad.evaluate` by its name, in the order of the page."""

OPTIONAL = {metric.name: metric for metric in (*perturbation.METRICS, *imputation.METRICS)}
"""Metrics that take many forward passes, or attributions, more: measured where they are named."""

__all__ = [
    "FRACTIONS",
    "METRICS",
    "OPTIONAL",
    "Alike",
    "Answer",
    "Cascade",
    "Dropping",
    "Game",
    "Imputing",
    "Interval",
    "Measured",
    "Metric",
    "Removal",
    "Replacing",
    "alike",
    "answer",
    "area",
    "average_precision",
    "blurred",
    "bootstrap",
    "coalitions",
    "completeness",
    "deletion_insertion",
    "faithfulness",
    "float64_agreement",
    "holm",
    "imputed",
    "infidelity",
    "iou",
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
    "two_level",
]
