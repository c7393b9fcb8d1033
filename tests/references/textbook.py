"""Textbook references for every kind of op: plain PyTorch in which `.detach()` spells what a rule must do.

Nothing here knows of fxgrad. The secants are closed forms that do not cancel, so that in float64 they are
exact to a few ulps; what `.detach()` holds gets no gradient; everything else is ordinary autograd.

Sources: LibraGrad (arXiv:2411.16760), section 3; DeepLIFT (arXiv:1704.02685), eq. 10, for the secants.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LN2 = math.log(2.0)


def ratio(numerator: Tensor, x: Tensor, limit: float) -> Tensor:
    """numerator / x; below 1e-16, where f(x) / x = f'(0) to the last digit, the limit."""
    near = x.abs() < 1e-16
    return torch.where(near, limit, numerator / torch.where(near, 1.0, x))


def log_cosh(u: Tensor) -> Tensor:
    """log(cosh(u)) without cancellation around 0: cosh(u)^2 = 1 + sinh(u)^2."""
    return torch.log1p(torch.sinh(u).square()) / 2


# x * g(x): the gate g in closed form.


def gelu_gate(x: Tensor) -> Tensor:
    """Phi(x), the standard normal's distribution function."""
    return torch.special.erfc(-x / math.sqrt(2)) / 2


def tanh_gelu_gate(x: Tensor) -> Tensor:
    """(1 + tanh(u)) / 2 is sigmoid(2u)."""
    return torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


def silu_gate(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def mish_gate(x: Tensor) -> Tensor:
    """tanh(log(1 + e^x)) as a rational function of e^-|x|."""
    e = torch.exp(-x.abs())
    return torch.where(x > 0, (1 + 2 * e) / (1 + 2 * e + 2 * e * e), (e * e + 2 * e) / (e * e + 2 * e + 2))


def hardswish_gate(x: Tensor) -> Tensor:
    return (x / 6 + 0.5).clamp(0, 1)


# (f(x) - f(0)) / x in closed form, and f(0).


def sigmoid_slope(x: Tensor) -> Tensor:
    """sigmoid(x) - 1/2 = tanh(x / 2) / 2."""
    return ratio(torch.tanh(x / 2) / 2, x, 0.25)


def softplus_slope(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """softplus(u) - log 2 = u / 2 + log(cosh(u / 2)); beyond its threshold PyTorch's softplus is the identity."""
    u = beta * x
    bent = 0.5 + ratio(log_cosh(u.clamp(-700, threshold) / 2), u, 0.0)
    straight = (x - LN2 / beta) / torch.where(x == 0, 1.0, x)
    # Far on the left, softplus has vanished and only -log 2 is left to cancel.
    return torch.where(u > threshold, straight, torch.where(u < -50, -LN2 / u, bent))


def log_sigmoid_slope(x: Tensor) -> Tensor:
    """log(sigmoid(x)) = -softplus(-x), so its slope at x is softplus's at -x."""
    return softplus_slope(-x, threshold=700.0)


def hardsigmoid_slope(x: Tensor) -> Tensor:
    return ratio(x.clamp(-3, 3) / 6, x, 1 / 6)


def elu_slope(x: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    """scale * alpha * expm1(input_scale * x) on the left, scale * x on the right; PyTorch takes the left one at 0."""
    left = alpha * input_scale * ratio(torch.expm1(input_scale * x), input_scale * x, 1.0)
    return scale * torch.where(x > 0, torch.ones_like(x), left)


SECANTS: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {
    "tanh": (0.0, lambda x: ratio(torch.tanh(x), x, 1.0)),
    "erf": (0.0, lambda x: ratio(torch.erf(x), x, 2 / math.sqrt(math.pi))),
    "atan": (0.0, lambda x: ratio(torch.atan(x), x, 1.0)),
    "sin": (0.0, lambda x: ratio(torch.sin(x), x, 1.0)),
    "asinh": (0.0, lambda x: ratio(torch.asinh(x), x, 1.0)),
    "sinh": (0.0, lambda x: ratio((torch.expm1(x) - torch.expm1(-x)) / 2, x, 1.0)),
    "expm1": (0.0, lambda x: ratio(torch.expm1(x), x, 1.0)),
    "log1p": (0.0, lambda x: ratio(torch.log1p(x), x, 1.0)),
    "elu": (0.0, elu_slope),
    "elu_2": (0.0, lambda x: elu_slope(x, alpha=2.0)),
    "celu": (0.0, elu_slope),
    "celu_2": (0.0, lambda x: elu_slope(x, alpha=2.0, input_scale=0.5)),
    "selu": (0.0, lambda x: elu_slope(x, alpha=1.6732632423543772, scale=1.0507009873554805)),
    "sigmoid": (0.5, sigmoid_slope),
    "log_sigmoid": (-LN2, log_sigmoid_slope),
    "hardsigmoid": (0.5, hardsigmoid_slope),
    "softplus": (LN2, softplus_slope),
    "softplus_3": (LN2 / 3, lambda x: softplus_slope(x, beta=3.0, threshold=5.0)),
    "exp": (1.0, lambda x: ratio(torch.expm1(x), x, 1.0)),
    "exp2": (1.0, lambda x: LN2 * ratio(torch.expm1(LN2 * x), LN2 * x, 1.0)),
    "cos": (1.0, lambda x: -torch.sin(x / 2) * ratio(torch.sin(x / 2), x / 2, 1.0)),
    "erfc": (1.0, lambda x: -ratio(torch.erf(x), x, 2 / math.sqrt(math.pi))),
    "tan": (0.0, lambda x: ratio(torch.tan(x), x, 1.0)),
    "asin": (0.0, lambda x: ratio(torch.asin(x), x, 1.0)),
    "atanh": (0.0, lambda x: ratio((torch.log1p(x) - torch.log1p(-x)) / 2, x, 1.0)),
    "cosh": (1.0, lambda x: torch.sinh(x / 2) * ratio(torch.sinh(x / 2), x / 2, 1.0)),
    "acos": (math.pi / 2, lambda x: -ratio(torch.asin(x), x, 1.0)),
    "erfinv": (0.0, lambda x: ratio(torch.erfinv(x), x, math.sqrt(math.pi) / 2)),
}
"""f(0), and x -> (f(x) - f(0)) / x."""


def secant(name: str) -> Callable[[Tensor], Tensor]:
    """x -> f(0) + x * slope, the slope held."""
    at_zero, slope = SECANTS[name]
    return lambda x: at_zero + x * slope(x).detach()


def logarithm(base: float) -> Callable[[Tensor], Tensor]:
    """x -> (x - 1) * slope, the slope log(x) / (x - 1) held: log1p(x - 1), carried by its secant."""

    def function(x: Tensor) -> Tensor:
        u = x - 1
        log = torch.where(u.abs() < 0.5, torch.log1p(u), torch.log(x))
        return u * ratio(log / math.log(base), u, 1 / math.log(base)).detach()

    return function


def through(
    root: float, function: Callable[[Tensor], Tensor], limit: float, apart: Callable[[Tensor], Tensor] | None = None
) -> Callable[[Tensor], Tensor]:
    """x -> (x - r) * slope, the slope f(x) / (x - r) held; `apart` is f as a function of x - r."""

    def of(x: Tensor) -> Tensor:
        u = x - root
        return u * ratio(function(x) if apart is None else apart(u), u, limit).detach()

    return of


def gated(gate: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """x -> x * g(x), the gate held."""
    return lambda x: x * gate(x).detach()


def shared(function: Callable[..., Tensor], *carriers: Tensor) -> Tensor:
    """A product of n carriers: the mean over its n versions in which only one of them is not held."""
    versions = [function(*(c if i == j else c.detach() for j, c in enumerate(carriers))) for i in range(len(carriers))]
    return torch.stack(versions).mean(0)


def power(x: Tensor, n: float) -> Tensor:
    """x^n as x * x^(n-1), the second factor held: Euler's share for degree n."""
    return x * (x ** (n - 1)).detach()


def normalize(x: Tensor, dims: int | list[int], eps: float, centered: bool = True) -> Tensor:
    """(x - mean) / sigma, or x / rms, with sigma or rms held."""
    centre = x - x.mean(dims, keepdim=True) if centered else x
    return centre * (centre.square().mean(dims, keepdim=True) + eps).rsqrt().detach()


def group_norm(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5) -> Tensor:
    """Normalization of every group of channels; weight and bias one number per channel."""
    y = normalize(x.reshape(x.shape[0], groups, -1), -1, eps).reshape(x.shape)
    per_channel = (-1, *[1] * (x.dim() - 2))
    y = y if weight is None else y * weight.reshape(per_channel)
    return y if bias is None else y + bias.reshape(per_channel)


def attention_weights(
    q: Tensor, k: Tensor, mask: Tensor | None = None, causal: bool = False, scale: float | None = None
) -> Tensor:
    """softmax(q k^T * scale + mask), a query that may look nowhere gets no weights."""
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    highest = scores.amax(-1, keepdim=True)
    weights = torch.exp(scores - torch.where(highest == -math.inf, 0.0, highest))
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-300)


def attention(
    q: Tensor, k: Tensor, v: Tensor, *mask: Tensor, causal: bool = False, scale: float | None = None
) -> Tensor:
    """P v with P held; more query heads than key heads share the keys and values (GQA)."""
    if q.dim() == 4 and q.shape[1] != k.shape[1]:
        repeats = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    return attention_weights(q, k, *mask, causal=causal, scale=scale).detach() @ v


def batch_norm(x: Tensor, m: torch.nn.Module) -> Tensor:
    """Batch normalization in eval mode: affine, channel by channel."""
    per_channel = (-1, *[1] * (x.dim() - 2))
    mean, var, weight, bias = (t.reshape(per_channel) for t in (m.running_mean, m.running_var, m.weight, m.bias))
    return (x - mean) / torch.sqrt(var + m.eps) * weight + bias


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer, written as a sum of products."""
    y = (x.unsqueeze(-2) * weight).sum(-1)
    return y if bias is None else y + bias


def unfolded_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, **geometry: int) -> Tensor:
    """A convolution as a matrix product over patches."""
    kernel = weight.shape[-2:]
    patches = F.unfold(x, kernel, **geometry)
    rows = weight.flatten(1) @ patches if bias is None else weight.flatten(1) @ patches + bias[:, None]
    pad, dilation, stride = (geometry.get(k, d) for k, d in (("padding", 0), ("dilation", 1), ("stride", 1)))
    height, width = ((n + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for n, k in zip(x.shape[-2:], kernel))
    return rows.unflatten(-1, (height, width))
