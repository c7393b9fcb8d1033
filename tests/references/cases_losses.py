"""The losses' cases: targets are held; each logarithm is carried by its secant through where it is 0, or as a softplus.

Formulas: the cross-entropies as -t log p - (1 - t) log(1 - p), with p the sigmoid of a logit where logits are given.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.references.cases import case
from tests.references.textbook import secant

softplus = secant("softplus")
WEIGHTS = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)


def labels(x: Tensor) -> Tensor:
    return (torch.arange(x.shape[0] * x[0, 0].numel()) % 3).reshape(x.shape[0], *x.shape[2:])


def pixels(x: Tensor) -> Tensor:
    return F.linear(x, torch.ones_like(x[0, :2]))[..., None]


def of_labels(x: Tensor) -> Tensor:
    """The negative scores of the labels, each as it is."""
    return -x.gather(1, labels(x)[:, None])[:, 0]


def with_logits(x: Tensor, y: Tensor) -> Tensor:
    t = y.sigmoid().detach()
    return (1 - t) * x + (1 + 2 * t) * softplus(-x)  # a hit counts three times


def entropy(x: Tensor, y: Tensor) -> Tensor:
    p, t = secant("sigmoid")(x), y.sigmoid().detach()
    hit, miss = (torch.where(q == 1, 1.0, q.log().clamp(min=-100) / (q - 1)).detach() for q in (p, 1 - p))
    return t * hit * (1 - p) + (1 - t) * miss * p


LOSSES = [
    case("nll_loss", "nll_loss_forward", "n 3", lambda x: F.nll_loss(x, labels(x), WEIGHTS.to(x)),
         lambda x: (of_labels(x) * WEIGHTS.to(x)[labels(x)]).sum() / WEIGHTS.to(x)[labels(x)].sum()),
    case("nll_loss_table", "nll_loss_forward", "n 3", lambda x: F.nll_loss(x, labels(x), reduction="none"), of_labels),
    case("nll_loss_pixels", "nll_loss2d_forward linear", "n 3 2",
         lambda x: F.nll_loss(pixels(x), labels(pixels(x)), reduction="sum"), lambda x: of_labels(pixels(x)).sum()),
    case("bce_with_logits", "binary_cross_entropy_with_logits", "n 3, n 3",
         lambda x, y: F.binary_cross_entropy_with_logits(x, y.sigmoid(), WEIGHTS.to(x), pos_weight=torch.full_like(x[0], 3)),
         lambda x, y: (with_logits(x, y) * WEIGHTS.to(x)).mean(), loose=16),
    case("bce_with_logits_table", "binary_cross_entropy_with_logits", "n a, n a",
         lambda x, y: F.binary_cross_entropy_with_logits(x, y.sigmoid(), reduction="none"),
         lambda x, y: (1 - y.sigmoid().detach()) * x + softplus(-x), loose=16),
    case("bce", "binary_cross_entropy", "n 3 : normal, n 3",
         lambda x, y: F.binary_cross_entropy(x.sigmoid(), y.sigmoid(), WEIGHTS.to(x)),
         lambda x, y: (entropy(x, y) * WEIGHTS.to(x)).mean(), 2, loose=32),
    case("bce_sum", "binary_cross_entropy", "n a : normal, n a",
         lambda x, y: F.binary_cross_entropy(x.sigmoid(), y.sigmoid(), reduction="sum"),
         lambda x, y: entropy(x, y).sum(), 2, loose=32),
    case("soft_margin_loss", "soft_margin_loss", "n 3", lambda x: F.soft_margin_loss(x, WEIGHTS.to(x).expand(x.shape)),
         lambda x: softplus(-WEIGHTS.to(x) * x).mean(), 20, loose=16),
]  # fmt: skip
