"""Metrics of attributions, each usable alone: tensors in, one number per picture out.

    from fxgrad import metrics

    metrics.average_precision(maps, masks)                                    # does it lie where the object is?
    tokens = metrics.Dropping(libra, (14, 14))                                # the model on fewer tokens
    metrics.removal_curve(tokens, x, scores, target, most_first=True)         # what the model says without them
    metrics.bootstrap(values)                                                 # means with confidence intervals

`fxgrad.evaluate` runs them all over a data set.
"""

from fxgrad.metrics.faithfulness import (
    FRACTIONS,
    Answer,
    answer,
    area,
    completeness,
    deletion_insertion,
    faithfulness,
    removal_curve,
)
from fxgrad.metrics.intervals import Interval, bootstrap, paired
from fxgrad.metrics.removal import Dropping, Removal, Replacing, blurred
from fxgrad.metrics.segmentation import average_precision, iou, pointing_game

__all__ = [
    "FRACTIONS",
    "Answer",
    "Dropping",
    "Interval",
    "Removal",
    "Replacing",
    "answer",
    "area",
    "average_precision",
    "blurred",
    "bootstrap",
    "completeness",
    "deletion_insertion",
    "faithfulness",
    "iou",
    "paired",
    "pointing_game",
    "removal_curve",
]
