"""Do an attribution's shares add up to the target's value?"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from fxgrad.metrics.metric import Measured, Metric


def completeness(total: Tensor, logit: Tensor, absolute: Tensor | None = None) -> dict[str, Tensor]:
    """The error of attributions that should add up to a logit.

    Args:
        total: sum of an attribution's shares, (...,).
        logit: the explained logit, (...,).
        absolute: sum of the sizes of the shares, (...,).

    Returns:
        "completeness": |total - logit|, "completeness_relative": |total - logit| / |logit|, and, given `absolute`,
        "completeness_of_shares": |total - logit| / absolute; float64 (...,). The second says little where a logit is
        close to 0, as a sum of shares of both signs may be.

    Example:
        >>> import torch
        >>> {k: v.item() for k, v in completeness(torch.tensor(1.0), torch.tensor(4.0)).items()}
        {'completeness': 3.0, 'completeness_relative': 0.75}

    Source: Sundararajan et al., ICML 2017, arXiv:1703.01365, proposition 1; FullGrad, arXiv:1905.00780, eq. 1.
    """
    error = (total.double() - logit.double()).abs()
    found = {"completeness": error, "completeness_relative": error / logit.double().abs()}
    return found if absolute is None else {**found, "completeness_of_shares": error / absolute.double()}


def _complete(name: str, measured: Measured) -> Tensor:
    return completeness(measured.total, measured.output, measured.absolute)[name]


METRICS = tuple(
    Metric(name, "lower", partial(_complete, name))
    for name in ("completeness", "completeness_relative", "completeness_of_shares")
)
