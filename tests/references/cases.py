"""The cases of the contract test: what is run, on which inputs, and which reference it must equal.

A case's inputs are written "n a 4 : domain". A letter is an axis whose size is drawn anew for every run
(the same letter, the same size), a number a fixed size. Domains: `any` (the default), `normal` (nothing
that underflows when squared), `nonzero`, `positive`. A reference takes the inputs, and the module first where
the case is a module.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.references.textbook import (
    SECANTS,
    attention,
    attention_weights,
    gated,
    gelu_gate,
    group_norm,
    hardswish_gate,
    logarithm,
    mish_gate,
    normalize,
    power,
    secant,
    shared,
    silu_gate,
    tanh_gelu_gate,
    through,
)

aten = torch.ops.aten


@dataclass(frozen=True)
class Case:
    """One module, its inputs, and the function that has the gradient it must get.

    Attributes:
        name: of the case.
        rows: rows of rules/ops.toml that it must run through.
        inputs: one spec per input, see above.
        module: in float64 and eval mode.
        reference: same values, gradients by `.detach()`; None: the module's own gradient is right.
        large: magnitude of the large inputs that the op stands.
        loose: factor on the bounds of float32 and bfloat16, where PyTorch's own backward needs it.
    """

    name: str
    rows: tuple[str, ...]
    inputs: tuple[str, ...]
    module: nn.Module
    reference: Callable[..., Tensor] | None
    large: float
    loose: float

    def expected(self, module: nn.Module, inputs: list[Tensor]) -> Any:
        if self.reference is None:
            return module(*inputs)
        return self.reference(*inputs) if isinstance(module, Function) else self.reference(module, *inputs)


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function


class Unary(Function):
    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class Binary(Function):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.function(x, y)


class Ternary(Function):
    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Any:
        return self.function(x, y, z)


class Quaternary(Function):
    def forward(self, x: Tensor, y: Tensor, z: Tensor, w: Tensor) -> Any:
        return self.function(x, y, z, w)


def case(
    name: str,
    rows: str,
    inputs: str,
    forward: Callable[..., Any],
    reference: Callable[..., Tensor] | None = None,
    large: float = 1e4,
    loose: float = 1.0,
) -> Case:
    """A case; several rows are separated by blanks, several inputs by commas."""
    specs = tuple(spec.strip() for spec in inputs.split(","))
    wrappers = (Unary, Binary, Ternary, Quaternary)
    module = forward if isinstance(forward, nn.Module) else wrappers[len(specs) - 1](forward)
    torch.manual_seed(0)
    for tensor in module.state_dict().values():
        # No zero bias, no unit weight: every parameter has to matter.
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5).mul_(1 if tensor.dim() == 1 else torch.randn_like(tensor).sign())
    module = module.double().eval()
    return Case(name, tuple(f"aten.{row}" for row in rows.split()), specs, module, reference, large, loose)


GATED = [
    case("gelu", "gelu", "n a b", F.gelu, gated(gelu_gate)),
    case("gelu_tanh", "gelu", "n a b", lambda x: F.gelu(x, approximate="tanh"), gated(tanh_gelu_gate)),
    case("silu", "silu", "n a b", F.silu, gated(silu_gate)),
    case("mish", "mish", "n a b", F.mish, gated(mish_gate)),
    case("hardswish", "hardswish", "n a b", F.hardswish, gated(hardswish_gate)),
]

# Functions that grow exponentially stand no 1e4; the others do.
ELEMENTWISE: dict[str, tuple[str, Callable[[Tensor], Tensor], float]] = {
    "tanh": ("tanh", torch.tanh, 1e4),
    "erf": ("erf", torch.erf, 1e4),
    "atan": ("atan", torch.atan, 1e4),
    "sin": ("sin", torch.sin, 1e4),
    "asinh": ("asinh", torch.asinh, 1e4),
    "sinh": ("sinh", torch.sinh, 50),
    "expm1": ("expm1", torch.expm1, 50),
    "log1p": ("log1p", torch.log1p, 1e4),
    "elu": ("elu", F.elu, 1e4),
    "elu_2": ("elu", lambda x: F.elu(x, alpha=2.0), 1e4),
    "celu": ("celu", F.celu, 1e4),
    "celu_2": ("celu", lambda x: F.celu(x, alpha=2.0), 1e4),
    "selu": ("selu", F.selu, 1e4),
    "sigmoid": ("sigmoid", torch.sigmoid, 1e4),
    "log_sigmoid": ("log_sigmoid", F.logsigmoid, 1e4),
    "hardsigmoid": ("hardsigmoid", F.hardsigmoid, 1e4),
    "softplus": ("softplus", F.softplus, 1e4),
    "softplus_3": ("softplus", lambda x: F.softplus(x, beta=3.0, threshold=5.0), 1e4),
    "exp": ("exp", torch.exp, 50),
    "exp2": ("exp2", torch.exp2, 50),
    "cos": ("cos", torch.cos, 1e4),
    "erfc": ("erfc", torch.erfc, 1e4),
    "tan": ("tan", torch.tan, 1e4),
    "cosh": ("cosh", torch.cosh, 50),
}
# These take numbers between -1 and 1 only, and near 1 show every rounding: fed by a tanh.
UNIT: dict[str, Callable[[Tensor], Tensor]] = {
    "asin": lambda x: torch.asin(0.75 * torch.tanh(x)),
    "acos": lambda x: torch.acos(0.75 * torch.tanh(x)),
    "atanh": lambda x: torch.atanh(0.75 * torch.tanh(x)),
    "erfinv": lambda x: torch.erfinv(0.75 * torch.tanh(x)),
}
assert set(ELEMENTWISE) | set(UNIT) == set(SECANTS)
SQUASHES_AND_GATES = [
    # log1p is undefined below -1.
    case(name, row, "n a b : positive" if name == "log1p" else "n a b", function, secant(name), large)
    for name, (row, function, large) in ELEMENTWISE.items()
] + [
    case(row, f"{row} tanh", "n a b", function, lambda x, r=row: secant(r)(0.75 * secant("tanh")(x)))
    for row, function in UNIT.items()
]
LOGARITHMS = [
    case("log", "log", "n a b : positive", torch.log, logarithm(math.e)),
    case("log2", "log2", "n a b : positive", torch.log2, logarithm(2)),
    case("log10", "log10", "n a b : positive", torch.log10, logarithm(10)),
    case("lgamma", "lgamma", "n a b : positive", torch.lgamma, through(1.0, torch.lgamma, -0.5772156649015329)),
    case("acosh", "acosh", "n a b : positive", lambda x: torch.acosh(1 + x),
         lambda x: through(1.0, torch.acosh, math.inf, lambda u: torch.log1p(u + (u * (u + 2)).sqrt()))(1 + x)),
]  # fmt: skip


def vector_norm(x: Tensor, p: float) -> Tensor:
    """Homogeneous of degree 1: its own gradient. At 0 PyTorch takes the subgradient 0."""
    norm = x.abs().pow(p).sum(-1, keepdim=True).pow(1 / p)
    direction = x.sign() * (x.abs() / torch.where(norm == 0, 1.0, norm)).pow(p - 1)
    return (x * direction.detach()).sum(-1)


def variance(x: Tensor) -> Tensor:
    centre = x - x.mean(-1, keepdim=True)
    return (centre * centre.detach()).sum(-1) / (x.shape[-1] - 1)


def deviation(x: Tensor) -> Tensor:
    centre = x - x.mean(-1, keepdim=True)
    sigma = (centre.square().sum(-1, keepdim=True) / (x.shape[-1] - 1)).sqrt()
    return (centre * (centre / sigma).detach()).sum(-1) / (x.shape[-1] - 1)


GATES: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    **{row: ("any", function) for row, function, _ in ELEMENTWISE.values() if SECANTS[row][0] != 0},
    "acos": ("any", UNIT["acos"]),
    "rsqrt": ("positive", torch.rsqrt),
    "reciprocal": ("nonzero", torch.reciprocal),
    "linalg_vector_norm": ("nonzero", lambda x: torch.linalg.vector_norm(x, dim=-1, keepdim=True)),
    "norm": ("nonzero", lambda x: aten.norm.ScalarOpt_dim(x, 2, [-1], True)),
    "std": ("any", lambda x: x.std(-1, keepdim=True)),
    "var": ("any", lambda x: x.var(-1, keepdim=True)),
    "softmax": ("any", lambda x: torch.softmax(x, -1)),
    "_softmax": ("any", lambda x: aten._softmax(x, -1, False)),
    "_safe_softmax": ("any", lambda x: aten._safe_softmax(x, -1)),
    "log_softmax": ("any", lambda x: torch.log_softmax(x, -1)),
    "_log_softmax": ("any", lambda x: aten._log_softmax(x, -1, False)),
    "logsumexp": ("any", lambda x: torch.logsumexp(x, -1, keepdim=True)),
    "logcumsumexp": ("any", lambda x: torch.logcumsumexp(x, -1)),
    "log": ("positive", torch.log),
    "log2": ("positive", torch.log2),
    "log10": ("positive", torch.log10),
    "logit": ("any", lambda x: torch.logit(0.75 + torch.tanh(x) / 8)),
    "lgamma": ("positive", torch.lgamma),
    "acosh": ("positive", lambda x: torch.acosh(1 + x)),
    "pow.Scalar": ("any", lambda x: torch.pow(1.5, x)),
    "angle": ("any", torch.angle),
    "sgn": ("any", torch.sgn),
}
# Of two operands.
GATES_OF_TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "atan2": torch.atan2,
    "hypot": torch.hypot,
    "dist": torch.dist,
    "cdist": lambda x, y: torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist"),
    "logaddexp": torch.logaddexp,
    "logaddexp2": torch.logaddexp2,
}
DEGREES = [
    case("rsqrt", "rsqrt", "n a : positive", torch.rsqrt, lambda x: power(x, -0.5)),
    case("reciprocal", "reciprocal", "n a : nonzero", torch.reciprocal, lambda x: power(x, -1)),
    case("norm_2", "linalg_vector_norm", "n a : normal", lambda x: x.norm(dim=-1), lambda x: vector_norm(x, 2)),
    case("norm_1", "linalg_vector_norm", "n a : normal", lambda x: x.norm(p=1, dim=-1), lambda x: vector_norm(x, 1)),
    case("norm_3", "linalg_vector_norm", "n a : normal", lambda x: x.norm(p=3, dim=-1), lambda x: vector_norm(x, 3)),
    case("aten_norm", "norm", "n a : normal", lambda x: aten.norm.ScalarOpt_dim(x, 2, [-1]),
         lambda x: vector_norm(x, 2)),
    # A constant group has no direction of deviation: 0 / 0.
    # PyTorch's own backward rounds the mean that it subtracts to bfloat16.
    case("std", "std", "n a : nonzero", lambda x: x.std(-1), deviation, loose=8),
    case("var", "var", "n a", lambda x: x.var(-1), variance, loose=8),
]  # fmt: skip
MULTIPLIERS = [
    case(f"{row}_gates", f"{row} mul", f"n a b : {domain}, n a b", lambda x, y, g=gate: g(x) * y,
         lambda x, y, g=gate: g(x).detach() * y, 50)
    for row, (domain, gate) in GATES.items()
] + [
    case(f"{row}_gates", f"{row} mul", "n a a : normal, n a a : normal, n a a", lambda x, y, z, g=gate: g(x, y) * z,
         lambda x, y, z, g=gate: g(x, y).detach() * z, 50, loose=8)
    for row, gate in GATES_OF_TWO.items()
]  # fmt: skip

PRODUCTS = [
    case("mul_carriers", "mul", "n a b, n 1 b", torch.mul, lambda x, y: shared(torch.mul, x, y)),
    case("mul_itself", "mul", "n a", lambda x: x * x, lambda x: x * x.detach()),
    case("mul_number", "mul", "n a", lambda x: x * 3.0, lambda x: 3.0 * x),
    case("mul_gates", "mul sigmoid", "n a, n a", lambda x, y: x.sigmoid() * y.sigmoid(),
         lambda x, y: shared(torch.mul, secant("sigmoid")(x), secant("sigmoid")(y))),
    case("mul_three", "mul", "n a, n a, n a", lambda x, y, z: x * y * z,
         lambda x, y, z: shared(torch.mul, shared(torch.mul, x, y), z), 100),
    case("mm", "mm", "n a, a b", torch.mm, lambda x, y: shared(torch.matmul, x, y)),
    case("bmm", "bmm", "n a b, n b c", torch.bmm, lambda x, y: shared(torch.matmul, x, y)),
    case("matmul", "matmul", "n a b, b c", torch.matmul, lambda x, y: shared(torch.matmul, x, y)),
    case("matmul_gate", "matmul softmax", "n a b, n b c", lambda x, y: x.softmax(-1) @ y,
         lambda x, y: x.softmax(-1).detach() @ y),
    case("mv", "mv", "n a, a", torch.mv, lambda x, y: shared(torch.matmul, x, y)),
    case("dot", "dot", "n, n", torch.dot, lambda x, y: shared(lambda a, b: (a * b).sum(), x, y)),
    case("einsum_two", "einsum", "n a b, n c b", lambda x, y: torch.einsum("nab,ncb->nac", x, y),
         lambda x, y: shared(lambda a, b: a @ b.transpose(1, 2), x, y)),
    case("einsum_three", "einsum", "n a, n a, n b", lambda x, y, z: torch.einsum("na,na,nb->nb", x, y, z),
         lambda x, y, z: shared(lambda a, b, c: (a * b).sum(1, keepdim=True) * c, x, y, z), 100),
    case("einsum_gate", "einsum sigmoid", "n a, n a b", lambda x, y: torch.einsum("na,nab->nb", x.sigmoid(), y),
         lambda x, y: (x.sigmoid().detach().unsqueeze(-1) * y).sum(1)),
    case("bilinear", "bilinear", "n 3, n 4", nn.Bilinear(3, 4, 2),
         lambda m, x, y: shared(lambda a, b: torch.einsum("ni,oij,nj->no", a, m.weight, b), x, y) + m.bias),
    case("_trilinear", "_trilinear", "n 3, 2 3 4, n 4",
         lambda x, w, y: aten._trilinear(x, w, y, [1, 3], [0], [1, 2], [2, 3]),
         lambda x, w, y: shared(lambda a, m, b: torch.einsum("ni,oij,nj->no", a, m, b), x, w, y), 100),
    case("cross", "linalg_cross", "n 3, n 3", lambda x, y: torch.linalg.cross(x, y.roll(1, -1)),
         lambda x, y: shared(lambda a, b: a[:, [1, 2, 0]] * b[:, [1, 2, 0]] - a[:, [2, 0, 1]] * b, x, y)),
    case("vdot", "vdot", "n, n", torch.vdot, lambda x, y: shared(lambda a, b: (a * b).sum(), x, y)),
    case("addr", "addr", "n a, n, a", lambda s, x, y: torch.addr(s, x, y, beta=0.5, alpha=2.0),
         lambda s, x, y: 0.5 * s + 2.0 * shared(lambda a, b: a[:, None] * b, x, y)),
    case("addmm", "addmm", "n b, n a, a b", lambda s, x, y: torch.addmm(s, x, y, beta=0.5, alpha=2.0),
         lambda s, x, y: 0.5 * s + 2.0 * shared(torch.matmul, x, y)),
    case("baddbmm", "baddbmm", "n 1 c, n a b, n b c", lambda s, x, y: torch.baddbmm(s, x, y, alpha=0.5),
         lambda s, x, y: s + 0.5 * shared(torch.matmul, x, y)),
    case("addbmm", "addbmm", "a c, n a b, n b c", torch.addbmm,
         lambda s, x, y: s + shared(lambda a, b: (a @ b).sum(0), x, y)),
    case("addmv", "addmv", "n, n a, a", torch.addmv, lambda s, x, y: s + shared(torch.matmul, x, y)),
    case("addcmul", "addcmul", "n a, n a, n a", lambda s, x, y: torch.addcmul(s, x, y, value=0.5),
         lambda s, x, y: s + 0.5 * shared(torch.mul, x, y)),
    case("addcmul_gate", "addcmul sigmoid", "n a, n a, n a", lambda s, x, y: torch.addcmul(s, x.sigmoid(), y),
         lambda s, x, y: s + x.sigmoid().detach() * y),
    # Linear ops whose coefficient is computed from the input are products, too.
    case("linear_computed", "linear", "n 3, 2 3", F.linear, lambda x, w: shared(torch.matmul, x, w.T)),
    case("linear_gate", "linear softmax", "n 3, 2 3", lambda x, w: F.linear(x, w.softmax(-1)),
         lambda x, w: x @ w.softmax(-1).detach().T),
    case("conv2d_computed", "conv2d", "n 2 5 5, 3 2 3 3", F.conv2d, lambda x, w: shared(F.conv2d, x, w)),
    case("conv1d_gate", "conv1d softmax", "n 2 6, 3 2 3", lambda x, w: F.conv1d(x, w.softmax(-1)),
         lambda x, w: F.conv1d(x, w.softmax(-1).detach())),
]  # fmt: skip

QUOTIENTS = [
    case("div_carriers", "div.Tensor", "n a b, n 1 b : nonzero", torch.div, lambda x, y: x / y.detach()),
    case("div_gate", "div.Tensor exp", "n a, n a", lambda x, y: x / (1 + torch.exp(y)),
         lambda x, y: x / (1 + torch.exp(y)).detach(), 50),
    case("div_itself", "div.Tensor", "n a", lambda x: x / (1 + x.abs()), lambda x: x / (1 + x.abs()).detach()),
    case("div_number", "div.Tensor", "n a", lambda x: x / 3.0, lambda x: x / 3.0),
    case("div_scalar", "div.Scalar", "n a", lambda x: aten.div.Scalar(x, 3.0), lambda x: x / 3.0),
    case("div_of_number", "reciprocal mul", "n a : nonzero", lambda x: 2.0 / x, lambda x: 2.0 * power(x, -1)),
    case("div_of_constant", "div.Tensor", "n a : nonzero", lambda x: torch.ones_like(x) / x, lambda x: power(x, -1)),
    case("normalize", "linalg_vector_norm clamp_min div.Tensor", "n a", lambda x: F.normalize(x, dim=-1),
         lambda x: x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12).detach()),
]  # fmt: skip

POWERS = [
    case("pow_2", "pow.Tensor_Scalar", "n a", lambda x: x**2, lambda x: power(x, 2)),
    case("pow_3", "pow.Tensor_Scalar", "n a", lambda x: x**3, lambda x: power(x, 3), 100),
    case("pow_half", "pow.Tensor_Scalar", "n a : positive", lambda x: x**0.5, lambda x: power(x, 0.5)),
    case("pow_2.5", "pow.Tensor_Scalar", "n a : positive", lambda x: x**2.5, lambda x: power(x, 2.5), 100),
    case("pow_-1", "pow.Tensor_Scalar", "n a : nonzero", lambda x: x**-1, lambda x: power(x, -1)),
    case("pow_-1.5", "pow.Tensor_Scalar", "n a : positive", lambda x: x**-1.5, lambda x: power(x, -1.5)),
    # A deviation and a mean, both homogeneous of degree 1. PyTorch rounds the mean to bfloat16 in the backward.
    case(
        "std_mean",
        "std_mean.correction",
        "n a : nonzero",
        lambda x: torch.stack(torch.std_mean(x, dim=-1, correction=1)),
        lambda x: torch.stack([deviation(x), x.mean(-1)]),
        loose=8,
    ),
    case("square", "square", "n a", lambda x: x.square(), lambda x: power(x, 2)),
    case("sqrt", "sqrt", "n a : positive", torch.sqrt, lambda x: power(x, 0.5)),
]


def default_eps(dtype: torch.dtype) -> float:
    """rms_norm's epsilon where none is given: that of the dtype in which it computes, float32 at least."""
    return torch.finfo(torch.promote_types(dtype, torch.float32)).eps


def response(x: Tensor) -> Tensor:
    """ConvNeXt V2's GRN multiplies x by this: its norm over positions, relative to the mean over channels."""
    norms = x.norm(dim=(1, 2), keepdim=True)
    return norms / (norms.mean(-1, keepdim=True) + 1e-6)


NORMALIZATIONS = [
    case("layer_norm", "layer_norm", "n a 4", nn.LayerNorm(4),
         lambda m, x: normalize(x, -1, 1e-5) * m.weight + m.bias),
    case("layer_norm_plain", "layer_norm", "n a b", lambda x: F.layer_norm(x, x.shape[1:]),
         lambda x: normalize(x, [1, 2], 1e-5)),
    case("layer_norm_2d", "layer_norm", "n 3 4", nn.LayerNorm((3, 4), eps=0.1),
         lambda m, x: normalize(x, [1, 2], 0.1) * m.weight + m.bias),
    case("layer_norm_no_bias", "layer_norm", "n a 4", nn.LayerNorm(4, bias=False),
         lambda m, x: normalize(x, -1, 1e-5) * m.weight),
    case("rms_norm", "rms_norm", "n a 4", nn.RMSNorm(4, eps=1e-6),
         lambda m, x: normalize(x, -1, 1e-6, centered=False) * m.weight),
    case("rms_norm_default_eps", "rms_norm", "n 3 4", nn.RMSNorm((3, 4)),
         lambda m, x: normalize(x, [1, 2], default_eps(m.dtype), centered=False) * m.weight),
    case("group_norm", "group_norm", "n 6 a", nn.GroupNorm(3, 6), lambda m, x: group_norm(x, 3, m.weight, m.bias)),
    case("group_norm_2d", "group_norm", "n 6 a b", nn.GroupNorm(2, 6), lambda m, x: group_norm(x, 2, m.weight, m.bias)),
    case("group_norm_flat", "group_norm", "n 6", nn.GroupNorm(2, 6, affine=False),
         lambda m, x: group_norm(x, 2, None, None)),
    case("native_layer_norm", "native_layer_norm", "n a 4",
         lambda x: aten.native_layer_norm(x, [4], None, None, 1e-5)[0], lambda x: normalize(x, -1, 1e-5)),
    # PyTorch 2.11 takes contiguous inputs only, and its tracing drops a contiguous() that has nothing to do.
    case("native_group_norm", "native_group_norm", "2 6 4",
         lambda x: aten.native_group_norm(x.clone(memory_format=torch.contiguous_format), None, None, 2, 6, 4, 3, 1e-5)[0],
         lambda x: group_norm(x, 3, None, None)),
    case("instance_norm", "instance_norm", "n 3 5", nn.InstanceNorm1d(3, affine=True),
         lambda m, x: group_norm(x, 3, m.weight, m.bias)),
    case("instance_norm_2d", "instance_norm", "n 3 a b", nn.InstanceNorm2d(3),
         lambda m, x: group_norm(x, 3, None, None)),
    case("grn", "linalg_vector_norm div.Tensor mul", "n a b 3", lambda x: x + 0.5 * (x * response(x)),
         lambda x: x + 0.5 * x * response(x).detach()),
]  # fmt: skip


def product(*factors: Tensor) -> Tensor:
    return functools.reduce(torch.mul, factors)


def cumulated(x: Tensor) -> Tensor:
    columns = x.unbind(-1)
    return torch.stack([shared(product, *columns[: i + 1]) for i in range(len(columns))], -1)


MET = torch.tensor([0, 2, 0, 1, 0])
"""Where the rows of a case go: three meet, two are alone."""


def met(x: Tensor, start: Tensor, index: list[int]) -> Tensor:
    """Row by row: the product of the rows of x that go there, with the start held; the start where none goes."""
    parts = [[x[i] for i, to in enumerate(index) if to == place] for place in range(len(start))]
    return torch.stack([shared(product, *p) * own.detach() if p else own for p, own in zip(parts, start)])


def bent(d: Tensor, corner: float, slope: float) -> Tensor:
    """The loss of a difference over the difference, held: half its square up to the corner, then straight on."""
    size = d.abs().detach()
    loss = torch.where(size < corner, 0.5 * size**2 / corner, size - 0.5 * corner) * slope
    return torch.where(size > 0, loss * d.detach().sign() / size, 0)


class GeneralizedMean(nn.Module):
    """GeM pooling: a mean whose exponent is learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, x: Tensor) -> Tensor:
        return x.abs().pow(self.p).mean(-1).pow(1 / self.p)


COMPOSED = [
    case("entr", "special_entr", "n a : positive", torch.special.entr, lambda x: x * -x.detach().log()),
    case("as_strided_scatter", "as_strided_scatter", "9, 2 2", lambda x, y: torch.as_strided_scatter(x, y, (2, 2), (1, 3), 1),
         lambda x, y: torch.cat([x[:1], y[:, 0], x[3:4], y[:, 1], x[6:]])),
    case("glu", "glu", "n a 6", F.glu, lambda x: x[..., :3] * x[..., 3:].sigmoid().detach()),
    case("glu_axis_1", "glu", "n 4 a", lambda x: F.glu(x, 1), lambda x: x[:, :2] * x[:, 2:].sigmoid().detach()),
    case("mse_loss", "mse_loss", "n a : normal, n a : normal", F.mse_loss, lambda x, y: ((x - y) * (x - y).detach()).mean()),
    case("mse_loss_table", "mse_loss", "n a : normal, n a : normal", lambda x, y: F.mse_loss(x, y, reduction="none"),
         lambda x, y: (x - y) * (x - y).detach()),
    case("mse_loss_sum", "mse_loss", "n a : normal, n a : normal", lambda x, y: F.mse_loss(x, y, reduction="sum"),
         lambda x, y: ((x - y) * (x - y).detach()).sum()),
    case("smooth_l1_loss", "smooth_l1_loss", "n a : normal, n a : normal", lambda x, y: F.smooth_l1_loss(x, y, beta=0.5),
         lambda x, y: ((x - y) * bent(x - y, 0.5, 1.0)).mean()),
    case("huber_loss", "huber_loss", "n a : normal, n a : normal", lambda x, y: F.huber_loss(x, y, delta=0.5, reduction="sum"),
         lambda x, y: ((x - y) * bent(x - y, 0.5, 0.5)).sum()),
    case("lerp_gate", "lerp.Tensor sigmoid", "n a, n a, n a", lambda x, y, z: torch.lerp(x, y, z.sigmoid()),
         lambda x, y, z: x + (y - x) * z.sigmoid().detach()),
    case("addcdiv", "addcdiv", "n a, n a, n a : nonzero", lambda x, y, z: torch.addcdiv(x, y, z, value=0.5),
         lambda x, y, z: x + 0.5 * y / z.detach()),
    case("prod", "prod.dim_int", "n a", lambda x: x.prod(-1), lambda x: shared(product, *x.unbind(-1)), 20, loose=2),
    case("prod_all", "prod.default", "2 3", torch.prod, lambda x: shared(product, *x.flatten()), 20, loose=2),
    case("cumprod", "cumprod", "n a : normal", lambda x: x.cumprod(-1), cumulated, 20, loose=2),
    case("scatter_prod", "scatter_reduce", "5 a : normal",
         lambda x: 2 * torch.ones_like(x[:4]).scatter_reduce(0, MET[:, None].expand_as(x), x, "prod"),
         lambda x: met(x, 2 * torch.ones_like(x[:4]), MET.tolist()), 20, loose=4),
    case("scatter_prod_apart", "scatter_reduce", "5 a : normal",
         lambda x: torch.zeros_like(x).scatter_reduce(0, MET[:, None].expand_as(x), x, "prod", include_self=False),
         lambda x: torch.nn.functional.pad(met(x, torch.ones_like(x[:3]), MET.tolist()), (0, 0, 0, 2)), 20, loose=4),
    case("index_prod", "index_reduce.default", "5 a : normal",
         lambda x: 2 * torch.ones_like(x[:4]).index_reduce(0, MET, x, "prod"),
         lambda x: met(x, 2 * torch.ones_like(x[:4]), MET.tolist()), 20, loose=4),
    case("pow_tensor", "pow.Tensor_Tensor", "n a : positive", lambda x: x ** torch.full_like(x[:1], 2.5),
         lambda x: power(x, 2.5), 100),
    case("gem", "pow.Tensor_Tensor", "n a b : nonzero", GeneralizedMean(),
         lambda m, x: power(power(x.abs(), m.p).mean(-1), 1 / m.p), 100, loose=4),
    # The mean of x, its own deviation held, and half of the variance's gradient.
    case("var_mean", "var_mean.correction", "n a", lambda x: torch.stack(torch.var_mean(x, -1)),
         lambda x: torch.stack([variance(x), x.mean(-1)]), loose=8),
    case("aminmax", "aminmax", "n a b", lambda x: torch.stack(x.aminmax(dim=1)),
         lambda x: torch.stack([x.amin(1), x.amax(1)])),
    case("aminmax_all", "aminmax", "n a b", lambda x: torch.stack(x.aminmax()), lambda x: torch.stack([x.amin(), x.amax()])),
]  # fmt: skip


class TalkingHeads(nn.Module):
    """Attention whose weights are mixed among the heads by a convolution: still weights."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix((x @ x.mT * 3**-0.5).softmax(-1)) @ x


SDPA = F.scaled_dot_product_attention
HOLES = torch.tensor([[1, 1, 0, 0, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
ATTENTIONS = [
    case("sdpa", "scaled_dot_product_attention", "n 2 a 4, n 2 a 4, n 2 a 4", SDPA, attention),
    case("sdpa_itself", "scaled_dot_product_attention", "n 2 a 4", lambda x: SDPA(x, x, x),
         lambda x: attention(x, x, x)),
    case("sdpa_cross", "scaled_dot_product_attention", "n 2 a 4, n 2 b 4", lambda x, y: SDPA(x, y, y),
         lambda x, y: attention(x, y, y)),
    case("sdpa_wide_value", "scaled_dot_product_attention", "n a 4, n b 4, n b 6", SDPA, attention),
    # The last query may look nowhere.
    case("sdpa_bool_mask", "scaled_dot_product_attention", "n 2 3 4, n 2 5 4",
         lambda x, y: SDPA(x, y, y, attn_mask=HOLES), lambda x, y: attention(x, y, y, HOLES)),
    case("sdpa_float_mask", "scaled_dot_product_attention", "n 2 3 4, n 2 5 4, n 1 3 5",
         lambda x, y, z: SDPA(x, y, y, attn_mask=z), lambda x, y, z: attention(x, y, y, z)),
    case("sdpa_causal", "scaled_dot_product_attention", "n 2 a 4, n 2 b 4",
         lambda x, y: SDPA(x, y, y, is_causal=True), lambda x, y: attention(x, y, y, causal=True)),
    case("sdpa_scale", "scaled_dot_product_attention", "n 2 a 4", lambda x: SDPA(x, x, x, scale=0.1),
         lambda x: attention(x, x, x, scale=0.1)),
    case("sdpa_gqa", "scaled_dot_product_attention", "n 4 a 4, n 2 b 4, n 2 b 4",
         lambda x, y, z: SDPA(x, y, z, enable_gqa=True), attention),
    case("sdpa_gqa_causal", "scaled_dot_product_attention", "n 4 a 4, n 1 a 4",
         lambda x, y: SDPA(x, y, y, is_causal=True, enable_gqa=True), lambda x, y: attention(x, y, y, causal=True)),
    case("talking_heads", "softmax conv2d matmul", "n 2 a 3", TalkingHeads(),
         lambda m, x: m.mix(attention_weights(x, x)).detach() @ x),
]  # fmt: skip

NONLINEAR = [
    *GATED, *SQUASHES_AND_GATES, *LOGARITHMS, *DEGREES, *MULTIPLIERS, *PRODUCTS, *QUOTIENTS, *POWERS, *NORMALIZATIONS, *COMPOSED, *ATTENTIONS
]  # fmt: skip
