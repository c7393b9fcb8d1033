"""Do an attribution's shares add up to the target's value?"""

from __future__ import annotations

from torch import Tensor

from fxgrad.metrics.metric import Metric


def completeness(total: Tensor, logit: Tensor) -> dict[str, Tensor]:
    """The error of attributions that should add up to a logit.

    Args:
        total: sum of an attribution's shares, (...,).
        logit: the explained logit, (...,).

    Returns:
        "completeness": |total - logit|, and "completeness_relative": |total - logit| / |logit|; float64 (...,).

    Example:
        >>> import torch
        >>> {k: v.item() for k, v in completeness(torch.tensor(1.0), torch.tensor(4.0)).items()}
        {'completeness': 3.0, 'completeness_relative': 0.75}

    Source: Sundararajan et al., ICML 2017, arXiv:1703.01365, proposition 1; FullGrad, arXiv:1905.00780, eq. 1.
    """
    error = (total.double() - logit.double()).abs()
    return {"completeness": error, "completeness_relative": error / logit.double().abs()}


METRICS = (
    Metric("completeness", "lower", lambda m: completeness(m.total, m.output)["completeness"]),
    Metric("completeness_relative", "lower", lambda m: completeness(m.total, m.output)["completeness_relative"]),
)
