"""Random models for the fuzz test: a grammar of all kinds, and an analysis that is independent of fxgrad's.

A model is a short program: a list of steps, each one production of the grammar applied to earlier
values. Every value is a float64 tensor of shape (batch, 4, 4), so that any step can follow any other;
rows of the batch are never mixed. A production is Python code in its operands `a`, `b`, `c`; a
program becomes the forward of an `nn.Module` as that code, so that a counterexample reads as the
model that it is: `print(build(program).source)`.

Beside each production stands what it means, as DESIGN.md, section 2, has it: from that follows,
without a look at fxgrad's own classification, whether a softmax reaches the output as an addend.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

# What a value means: an abstract interpretation in ten lines, along the table of roles.

CONSTANT, PURE_GATE, GATE, CARRIER = range(4)


@dataclass(frozen=True, eq=False)
class Meaning:
    """Of one value: its role, and the values that its cotangent is handed on to.

    `odd`: it is c·f(x) with f odd and bounded, such as tanh. `raised`: it is number + carrier. `attributed`: an input.
    """

    role: int
    passes: tuple[Meaning, ...] = ()
    odd: bool = False
    raised: bool = False
    attributed: bool = False

    def refuses(self) -> bool:
        """Whether a cotangent that arrives here ends at a value that can only multiply."""
        pending, seen = [self], {self}
        while pending:
            value = pending.pop()
            if value.role and not value.passes and not value.attributed:
                return True
            pending += set(value.passes) - seen
            seen.update(value.passes)
        return False


def data(values: Sequence[Meaning]) -> tuple[Meaning, ...]:
    return tuple(v for v in values if v.role)


def constant(*values: Meaning) -> Meaning:
    return Meaning(CONSTANT)


def linear(*values: Meaning) -> Meaning:
    """Linear or piecewise linear, a squash, a gated activation, a normalization: carries what it gets."""
    return Meaning(max(v.role for v in values), data(values))


def moved(a: Meaning) -> Meaning:
    """Linear in one operand, with nothing added: an odd squash stays one."""
    return replace(linear(a), odd=a.odd)


def odd(a: Meaning) -> Meaning:
    return replace(linear(a), odd=True)


def lifted(a: Meaning) -> Meaning:
    """Number + value: a gate if the value is an odd squash."""
    role = min(a.role, GATE) if a.odd else a.role
    return replace(linear(a), role=role, raised=role == CARRIER)


def bounded(a: Meaning) -> Meaning:
    """Clamped from both sides: a gate if it is of number + carrier, as a hard sigmoid is."""
    return gate(a) if a.raised else linear(a)


def gate(a: Meaning) -> Meaning:
    return Meaning(min(a.role, GATE), data([a]))


def pure(a: Meaning, *others: Meaning) -> Meaning:
    return Meaning(min(max(v.role for v in (a, *others)), PURE_GATE))


def product(*values: Meaning) -> Meaning:
    """The strongest factors share; weaker ones are held."""
    strongest = max(v.role for v in values)
    return replace(
        linear(*(v for v in values if v.role == strongest)), odd=len(data(values)) == 1 and data(values)[0].odd
    )


def quotient(a: Meaning, b: Meaning) -> Meaning:
    return replace(linear(a), odd=a.odd and not b.role) if a.role else gate(b)


def attention(q: Meaning, k: Meaning, v: Meaning, *mask: Meaning) -> Meaning:
    return linear(v) if v.role else pure(q, k, *mask)


# The grammar: kind -> production -> meaning. `self.name` is made by MODULES or PARAMETERS below.

Production = Callable[..., Meaning]
CONSTANT_VALUE = Meaning(CONSTANT)

GRAMMAR: dict[str, dict[str, Production]] = {
    "linear": {
        "self.linear(a)": linear,
        "self.linear2(a)": linear,
        "self.unbiased(a)": linear,
        "self.conv1d(a)": linear,
        "self.conv_transpose1d(a)": linear,
        "self.conv2d(a.unflatten(1, (2, 2))).flatten(1, 2)": linear,
        "self.depthwise(a)": linear,
        "self.batch_norm(a)": linear,
        "self.batch_norm2d(a.unflatten(1, (2, 2))).flatten(1, 2)": linear,
        "F.linear(a.flatten(0, 1), self.matrix).unflatten(0, (-1, 4))": linear,
        "self.matrix @ a": moved,
        "a @ self.matrix": moved,
        "torch.einsum('ntc,cd->ntd', a, self.matrix)": moved,
        "a + b": linear,
        "a - b": linear,
        "torch.lerp(a, b, 0.3)": linear,
        "torch.add(a, b, alpha=-0.5)": linear,
        "a + self.matrix": linear,
        "self.vector - a": linear,
        "a * self.matrix": moved,
        "a / self.positive": moved,
        "a * self.scalar": moved,
        "a - self.scalar": linear,
        "F.linear(a, self.linear.weight)": linear,
        "self.tied(a)": linear,
        "self.weight_norm(a)": linear,
        "a * torch.tensor([1.0, -1.0, 0.5, 2.0])": moved,
        "a + torch.arange(4) / 4": linear,
        "a * a.shape[0]": moved,
        "a + a.shape[0] / 8": linear,
        "a * 0.5 + 0.5": lambda a: lifted(moved(a)),
        "1.0 - a": lifted,
        "-a": moved,
        "a.mean(1, keepdim=True) + b": linear,
        "a - a.mean(-1, keepdim=True)": lambda a: linear(a, moved(a)),
        "a.sum(1, keepdim=True) - b[..., :1]": linear,
        "a.mean((1, 2))[:, None, None] + b": linear,
        "a.cumsum(1)": moved,
        "F.avg_pool1d(a, 3, 1, 1)": moved,
        "F.adaptive_avg_pool1d(a, 2).repeat(1, 1, 2)": moved,
        "F.interpolate(a[:, None, :2], size=(4, 4), mode='bilinear')[:, 0]": moved,
        "F.interpolate(a[:, None, ::2, ::2], scale_factor=2.0)[:, 0]": moved,
        "F.interpolate(a[..., :2], scale_factor=2.0)": moved,
        "torch.where(a > b, a, c)": lambda a, b, c: linear(a, c),
        "torch.where(self.mask, a, b)": linear,
        "torch.where(a > 0, a, 0.1 * a)": lambda a: linear(a, moved(a)),
        "torch.where(a > 0.5, b, self.matrix)": lambda a, b: linear(b),
        "torch.where(a > 0, a, 0.5)": linear,
        "torch.where(a.abs() > b, 0.0, b)": lambda a, b: moved(b),
        "a.masked_fill(b > 0, 0.5)": lambda a, b: linear(a),
        "a * (b > 0)": lambda a, b: moved(a),
        "F.dropout(a, 0.5, self.training)": moved,
        "a + b.detach()": lambda a, b: linear(a),
        "a * b.detach()": lambda a, b: moved(a),
        "a.detach()": constant,
        "a + (torch.round(a) - a).detach()": linear,
        "torch.no_grad()(torch.tanh)(a) + b": lambda a, b: linear(b),
        "torch.autocast('cpu', enabled=False)(torch.tanh)(a)": odd,
    },
    "shape": {
        "a.transpose(1, 2)": moved,
        "a.transpose(1, 2).contiguous().transpose(1, 2)": moved,
        "a.permute(0, 2, 1).reshape(a.shape[0], 4, 4)": moved,
        "a.contiguous().view(-1, 2, 8).flatten(1).view(-1, 4, 4)": moved,
        "torch.cat([a[:, :2], b[:, 2:]], 1)": linear,
        "torch.cat([a, b, c], -1)[..., 1::3]": linear,
        "torch.stack([a, b], 1).mean(1)": linear,
        "torch.stack([a, b, a], -1).sum(-1)": linear,
        "s, t = a.chunk(2, -1); torch.cat([t, s], -1)": linear,
        "s, t = a.chunk(2, 1); s.repeat(1, 2, 1)": moved,
        "s, t = a.split([1, 3], 1); t.mean(1, keepdim=True) + s - b": linear,
        "s, t, u, v = a.unbind(1); torch.stack([v, t, s, t], 1)": linear,
        "a[:, [0, 2, 1, 1]]": moved,
        "a[:, self.order]": moved,
        "a.index_select(2, self.order)": moved,
        "a.gather(1, b.argsort(1))": lambda a, b: moved(a),
        "a.gather(-1, b.argmax(-1, keepdim=True)) + c": lambda a, b, c: linear(a, c),
        "a[:, :1].expand(-1, 4, -1)": moved,
        "a[:, ::2].repeat_interleave(2, 1)": moved,
        "a.flip(1)": moved,
        "a.roll(1, 2)": moved,
        "a.tril() + b.triu(1)": linear,
        "torch.diag_embed(a.diagonal(dim1=1, dim2=2)) + b": linear,
        "F.pad(a, (1, 0))[..., :4]": moved,
        "F.pad(a[:, 1:3], (0, 0, 1, 1), value=0.5)": linear,
        "F.pad(a, (1, 1), mode='reflect')[..., 2:]": moved,
        "F.unfold(a[:, None], 3, padding=1).unflatten(1, (-1, 3)).sum((1, 2)).unflatten(1, (4, 4))": moved,
        "F.pixel_shuffle(a.reshape(-1, 4, 2, 2), 2)[:, 0]": moved,
        "a.float().double()": moved,
        "torch.tanh(a.float()).double()": odd,
        "self.layer_norm_float(a.float()).type_as(a)": linear,
    },
    "in place": {
        "t = a.clone(); t += b; t": linear,
        "t = a.clone(); t.mul_(b); t": product,
        "t = a.clone(); t.mul_(t.clone()); t": product,
        "t = a.clone(); t[:, 0] = b[:, 1]; t": linear,
        "t = a.clone(); t[:, 1:3] *= b[:, :2]; t": lambda a, b: linear(a, product(a, b)),
        "t = a.clone(); t.transpose(1, 2)[:, 0] += b[:, 0]; t": lambda a, b: linear(a, linear(a, b)),
        "t = a.clone(); s = t.transpose(1, 2); s.mul_(0.5); t + b": linear,
        "t = a.clone(); t[t > 1] = 0.5; t": linear,
        "t = a.clone(); t.masked_fill_(b > 0, 0.0); t": lambda a, b: linear(a),
        "t = torch.zeros_like(a); t[:, :2] = a[:, :2]; t[:, 2:] = b[:, 2:]; t": linear,
        "t = a.new_zeros(a.shape[0], 4, 4); t[..., 0] += a[..., 1]; t + b": linear,
        "t = torch.empty_like(a); t.copy_(a); t": moved,
        "t = torch.empty_like(a); t.copy_(b.transpose(1, 2)); t + a": linear,
        "t = a.clone(); t.copy_(b[:, :1]); t": lambda a, b: moved(b),
        "t = a.clone(); t.cumsum_(1); t": moved,
        "t = a.clone(); t.tril_(); t": moved,
        "t = a.clone(); t.index_add_(1, self.order, b); t": linear,
        "t = a.clone(); t.relu_(); t": linear,
        "F.leaky_relu(a + 0.1, 0.2, inplace=True)": linear,
        "t = a.clone(); t.clamp_(-0.7, 0.9); t": linear,
        "t = a * 1.0; t.sigmoid_(); t * b": lambda a, b: product(gate(a), b),
        "t = a + b; t.div_(1 + c.abs()); t": lambda a, b, c: linear(a, b),
        "t = a.clone(); t.add_(b, alpha=2.0); t": linear,
        "a.index_add(1, self.order, b)": linear,
        "a.scatter(1, b.argsort(1), c)": lambda a, b, c: linear(a, c),
        "a.scatter_add(1, b.argsort(1), c)": lambda a, b, c: linear(a, c),
        "t = a.clone(); t[:, self.order] = b; t": linear,
    },
    "piecewise linear": {
        "F.relu(a)": linear,
        "F.leaky_relu(a, 0.1)": linear,
        "self.prelu(a)": linear,
        "F.rrelu(a)": linear,
        "a.abs()": linear,
        "F.hardtanh(a)": bounded,
        "F.relu6(a + 3) / 6 * b": lambda a, b: product(bounded(lifted(a)), b),
        "a.clamp(-0.5, 0.8)": bounded,
        "a.clamp(min=0.3)": linear,
        "a.clamp(max=self.vector)": linear,
        "torch.clamp(a, min=b)": linear,
        "F.threshold(a, 0.2, -0.3)": linear,
        "F.hardshrink(a)": linear,
        "F.softshrink(a, 0.2)": linear,
        "torch.round(a) + b": linear,
        "torch.maximum(a, b)": linear,
        "torch.minimum(a, self.matrix)": linear,
        "torch.max(a, b)": linear,
        "F.max_pool1d(a, 3, 1, 1)": linear,
        "F.max_pool2d(a[:, None], 3, 1, 1)[:, 0]": linear,
        "F.adaptive_max_pool1d(a, 2).repeat(1, 1, 2)": linear,
        "a.amax(1, keepdim=True) - b": linear,
        "a.amin((1, 2), keepdim=True) + b": linear,
        "a.max(-1, keepdim=True).values * 0.5 + b": linear,
        "a.median(1, keepdim=True).values + b": linear,
        "a.sort(-1).values": linear,
        "a.sort(1, descending=True)[0] - b": linear,
        "torch.cat([a.topk(2, 1).values, b[:, :2]], 1)": linear,
    },
    "gated activation": {
        "F.gelu(a)": linear,
        "F.gelu(a, approximate='tanh')": linear,
        "F.silu(a)": linear,
        "F.mish(a)": linear,
        "F.hardswish(a)": linear,
        "a * torch.sigmoid(1.702 * a)": lambda a: product(a, gate(a)),
        "F.glu(torch.cat([a, b], -1))": lambda a, b: product(a, gate(b)),
        "0.5 * a * (1 + torch.erf(a / 2**0.5))": lambda a: product(a, lifted(odd(a))),
        "0.5 * a * (1 + torch.tanh(0.8 * (a + 0.045 * a**3)))": lambda a: product(a, lifted(odd(a))),
        "a * torch.tanh(F.softplus(a))": lambda a: product(a, odd(gate(a))),
        "a * F.hardsigmoid(a)": lambda a: product(a, gate(a)),
        "F.silu(self.linear(a)) * self.linear2(a)": product,
    },
    "squash": {
        "torch.tanh(a)": odd,
        "torch.erf(a)": odd,
        "torch.atan(a)": odd,
        "torch.sin(a)": odd,
        "torch.asinh(a)": linear,
        "torch.sinh(a.clamp(-2, 2))": linear,
        "torch.expm1(a.clamp(-2, 2))": linear,
        "torch.log1p(a.abs())": linear,
        "F.elu(a)": linear,
        "F.celu(a, 0.5)": linear,
        "F.selu(a)": linear,
        "1 + torch.tanh(a)": lambda a: lifted(odd(a)),
        "(1 + torch.erf(a)) * b": lambda a, b: product(lifted(odd(a)), b),
    },
    "gate": {
        "torch.sigmoid(a)": gate,
        "torch.sigmoid(a) * b": lambda a, b: product(gate(a), b),
        "torch.sigmoid(a) * b + (1 - torch.sigmoid(a)) * c": lambda a, b, c: linear(
            product(gate(a), b), product(gate(a), c)
        ),
        "F.logsigmoid(a)": gate,
        "F.hardsigmoid(a)": gate,
        "F.softplus(a)": gate,
        "F.softplus(a, beta=2.0, threshold=3.0)": gate,
        "torch.exp(a.clamp(-2, 2))": gate,
        "torch.exp2(-a.abs()) * b": lambda a, b: product(gate(a), b),
        "torch.cos(a)": gate,
        "torch.erfc(a)": gate,
        "torch.rsqrt(a.square() + 0.1)": gate,
        "torch.reciprocal(1 + a.abs())": gate,
        "a.norm(dim=-1, keepdim=True).expand(-1, -1, 4)": gate,
        "torch.linalg.vector_norm(a, dim=1, keepdim=True) * b": lambda a, b: product(gate(a), b),
        "a.std(-1, keepdim=True) + b": lambda a, b: linear(gate(a), b),
        "a.var(1, keepdim=True) * b": lambda a, b: product(gate(a), b),
        "torch.softmax(a, -1) * b": lambda a, b: product(pure(a), b),
        "torch.softmax(a, 1, dtype=torch.float32).double() * b": lambda a, b: product(pure(a), b),
        "F.log_softmax(a, -1) * b": lambda a, b: product(pure(a), b),
        "a.logsumexp(-1, keepdim=True) * b": lambda a, b: product(pure(a), b),
        "torch.softmax(a, -1) * torch.sigmoid(b)": lambda a, b: product(pure(a), gate(b)),
    },
    "pure gate": {
        "torch.softmax(a, -1)": pure,
        "torch.softmax(a, -1) @ self.matrix": pure,
        "self.linear(torch.softmax(a, 1))": pure,
        "a.softmax(-1) + b.softmax(1)": lambda a, b: linear(pure(a), pure(b)),
    },
    "product": {
        "a * b": product,
        "a * a": product,
        "torch.einsum('nij,nij,nij->nij', a, a, b)": lambda a, b: product(a, a, b),
        "a * b * c": lambda a, b, c: product(product(a, b), c),
        "a @ b": product,
        "a @ a.transpose(1, 2)": lambda a: product(a, a),
        "torch.bmm(a, b)": product,
        "torch.einsum('nij,nkj->nik', a, b)": product,
        "torch.einsum('nij,njk,nkl->nil', a, b, c)": product,
        "torch.einsum('nij,nij->ni', a, b)[..., None] + c": lambda a, b, c: linear(product(a, b), c),
        "torch.addcmul(a, b, c, value=0.5)": lambda a, b, c: linear(a, product(b, c)),
        "torch.addcmul(self.matrix, a, b)": product,
        "torch.baddbmm(a, b, c, beta=0.5, alpha=2.0)": lambda a, b, c: linear(a, product(b, c)),
        "F.bilinear(a, b, self.cube, self.vector)": product,
        "F.conv1d(a.reshape(1, -1, 4), b[..., :3].reshape(-1, 1, 3), padding=1, groups=4 * a.shape[0]).reshape(-1, 4, 4)": product,
        "a * b.mean(-1, keepdim=True)": product,
        "a[:, :1] * b[..., :1] + c": lambda a, b, c: linear(product(a, b), c),
        "torch.lerp(a, b, torch.sigmoid(c))": lambda a, b, c: linear(a, b),
        "a.prod(1, keepdim=True) + b": linear,
        "a.cumprod(-1)": linear,
    },
    "quotient": {
        "a / (1 + b.abs())": lambda a, b: quotient(a, linear(b)),
        "a / (0.5 + b.square())": lambda a, b: quotient(a, linear(b)),
        "a / (1 + torch.exp(-b.abs()))": lambda a, b: quotient(a, gate(b)),
        "1 / (1 + a.abs())": lambda a: gate(a),
        "self.vector / (1 + a.abs())": lambda a: gate(a),
        "a / 2": moved,
        "torch.addcdiv(a, b, 1 + c.abs())": lambda a, b, c: linear(a, b),
        "a / a.norm(dim=-1, keepdim=True).clamp_min(0.1)": lambda a: quotient(a, gate(a)),
        "a / (0.1 + a.abs().sum(-1, keepdim=True))": lambda a: linear(a),
    },
    "power": {
        "a.square()": linear,
        "a**2": linear,
        "a**3": linear,
        "a**1": moved,
        "a**0 + b": lambda a, b: linear(b),
        "(a.abs() + 0.1) ** 1.5": linear,
        "(a.abs() + 0.1) ** -0.5": gate,
        "(a.square() + 0.5) ** -1": gate,
        "torch.sqrt(a.abs() + 0.1)": linear,
        "torch.sqrt(a.square() + 0.1) - b": linear,
    },
    "normalization": {
        "self.layer_norm(a)": linear,
        "self.layer_norm2d(a)": linear,
        "F.layer_norm(a, (4,))": linear,
        "self.rms_norm(a)": linear,
        "F.rms_norm(a, (4, 4))": linear,
        "self.group_norm(a)": linear,
        "F.group_norm(a, 1)": linear,
        "self.instance_norm(a)": linear,
        "F.instance_norm(a)": linear,
        "F.normalize(a, dim=-1)": lambda a: quotient(a, gate(a)),
        "(a - a.mean(-1, keepdim=True)) / torch.sqrt(a.var(-1, keepdim=True, unbiased=False) + 1e-2) * self.vector": (
            lambda a: quotient(linear(a), gate(a))
        ),
        "(a - a.mean(1, keepdim=True)) / (a.std(1, keepdim=True) + 0.1)": lambda a: quotient(linear(a), gate(a)),
        "a * torch.rsqrt(a.square().mean(-1, keepdim=True) + 1e-2)": lambda a: product(a, gate(a)),
        "s, t = torch.var_mean(a, -1, keepdim=True); (a - t) * torch.rsqrt(s + 1e-2)": lambda a: product(a, gate(a)),
        "t = a.norm(dim=1, keepdim=True); self.vector * (a * (t / (t.mean(-1, keepdim=True) + 0.1))) + self.vector + a": (
            lambda a: linear(product(a, gate(a)), a)
        ),
    },
    "attention": {
        "F.scaled_dot_product_attention(a, b, c)": attention,
        "F.scaled_dot_product_attention(a, a, a, is_causal=True)": lambda a: attention(a, a, a),
        "F.scaled_dot_product_attention(a, b, c, attn_mask=self.mask, scale=0.7)": attention,
        "F.scaled_dot_product_attention(a, a, b, attn_mask=a @ b)": lambda a, b: attention(a, a, b, a),
        "F.scaled_dot_product_attention(a, b, self.matrix.expand(a.shape[0], -1, -1))": lambda a, b: pure(a, b),
        "q, k, v = (t.unflatten(-1, (2, 2)).transpose(1, 2) for t in (a, b, c)); "
        "F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)": attention,
        "q, k, v = (t[..., None].transpose(1, 2) for t in (a, b[..., :2], b[..., 2:])); "
        "F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)": (
            lambda a, b: attention(a, b, b)
        ),
        "self.attention(a, a, a, need_weights=False)[0]": lambda a: attention(a, a, a),
        "self.attention(a, b, c)[0]": attention,
        "self.encoder(a)": linear,
        "torch.softmax(a @ b.transpose(1, 2) / 2, -1) @ c": attention,
        "torch.softmax((a @ a.transpose(1, 2)).masked_fill(~self.mask, -float('inf')), -1) @ b": (
            lambda a, b: attention(a, a, b)
        ),
        "t = torch.softmax((a[:, None] * self.heads) @ b[:, None].transpose(2, 3), -1); "
        "t = torch.einsum('nhqk,hg->ngqk', t, self.talk); (t @ c[:, None]).sum(1)": attention,
        "q, k = F.elu(a) + 1, F.elu(b) + 1; q @ (k.transpose(1, 2) @ c) / 4": lambda a, b, c: product(
            linear(a), product(linear(b), c)
        ),
    },
}

GRAMMAR["recurrence"] = {f"self.{name}(a)[0]": linear for name in ("lstm", "gru", "rnn")}


def arity(code: str) -> int:
    """How many operands a production has."""
    return len(set(re.findall(r"\b[abc]\b", code)))


MEANINGS: dict[str, Production] = {code: meaning for kind in GRAMMAR.values() for code, meaning in kind.items()}
COMMON = ["a + b", "self.linear(a)", "a * b"]
"""Drawn more often than others: residuals, layers and products are what joins the rest."""


class Tied(nn.Sequential):
    """Two layers of one weight."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        self[2].weight = self[0].weight


MODULES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(4, 4),
    "linear2": lambda: nn.Linear(4, 4),
    "unbiased": lambda: nn.Linear(4, 4, bias=False),
    "conv1d": lambda: nn.Conv1d(4, 4, 3, padding=1),
    "conv_transpose1d": lambda: nn.ConvTranspose1d(4, 4, 3, padding=1),
    "conv2d": lambda: nn.Conv2d(2, 2, 3, padding=1),
    "depthwise": lambda: nn.Conv1d(4, 4, 3, padding=2, dilation=2, groups=4),
    "batch_norm": lambda: nn.BatchNorm1d(4),
    "batch_norm2d": lambda: nn.BatchNorm2d(2, affine=False),
    "prelu": lambda: nn.PReLU(4),
    "layer_norm": lambda: nn.LayerNorm(4),
    "layer_norm2d": lambda: nn.LayerNorm((4, 4), eps=1e-3),
    "layer_norm_float": lambda: nn.LayerNorm(4, eps=1e-3),
    "rms_norm": lambda: nn.RMSNorm(4),
    "group_norm": lambda: nn.GroupNorm(2, 4),
    "instance_norm": lambda: nn.InstanceNorm1d(4, affine=True),
    "attention": lambda: nn.MultiheadAttention(4, 2, batch_first=True),
    "encoder": lambda: nn.TransformerEncoderLayer(4, 2, 8, activation="gelu", batch_first=True),
    "tied": lambda: Tied(),
    "lstm": lambda: nn.LSTM(4, 2, bidirectional=True, batch_first=True),
    "gru": lambda: nn.GRU(4, 4, num_layers=2, batch_first=True),
    "rnn": lambda: nn.RNN(4, 4, batch_first=True),
    "weight_norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
}
PARAMETERS = {"scalar": (), "vector": (4,), "matrix": (4, 4), "cube": (4, 4, 4), "shift": (4, 4)}
BUFFERS: dict[str, Callable[[], Tensor]] = {
    "positive": lambda: torch.rand(4, 4).double() + 0.5,
    "heads": lambda: torch.randn(2, 1, 4).double(),
    "talk": lambda: torch.randn(2, 2).double(),
    "order": lambda: torch.tensor([2, 0, 3, 1]),
    "mask": lambda: torch.ones(4, 4, dtype=torch.bool).tril(),
}


# Programs.


@dataclass(frozen=True)
class Step:
    """One production, and what it is applied to: 0 is the latest value, 1 the one before, and so on, round and round."""

    code: str
    operands: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """A model as data; `build` makes the module.

    Attributes:
        steps: in order.
        outputs: (form, value counted as operands are) each; forms are in `OUTPUTS`.
        structure: of the outputs: "bare" (the first one only), "tuple", "dict" or "nested".
        inputs: how many.
        batch, other: sizes of the example batch and of another one.
        strided: whether the other batch's inputs lie transposed in memory.
        frozen: whether parameters require no gradient.
        seed: of parameters and inputs.
    """

    steps: tuple[Step, ...]
    outputs: tuple[tuple[str, int], ...] = (("v", 0),)
    structure: str = "bare"
    inputs: int = 1
    batch: int = 2
    other: int = 3
    strided: bool = False
    frozen: bool = False
    seed: int = 0

    def examples(self, batch: int, stream: int = 0) -> tuple[Tensor, ...]:
        """Standard normal inputs."""
        generator = torch.Generator().manual_seed(1000 * self.seed + stream)
        return tuple(torch.randn(batch, 4, 4, generator=generator).double() for _ in range(self.inputs))

    @property
    def exact(self) -> bool:
        """Whether everything is computed in float64."""
        return not any("float" in step.code.replace("float('inf')", "") for step in self.steps)


OUTPUTS: dict[str, Production] = {
    "v": moved,
    "v.mean((1, 2))": moved,
    "v[:, 0, 1]": moved,
    "v.argmax(-1)": constant,
    "v.detach()": constant,
    "self.matrix": constant,
}
STRUCTURES = {"bare": "return {0}", "tuple": "return {all}", "dict": 'return {{"first": {0}, "rest": [{rest}]}}'}


class RandomModel(nn.Module):
    """A program as a module. `source` is its forward, `meanings` what its outputs mean."""

    source: str
    meanings: list[Meaning]


def build(program: Program) -> RandomModel:
    """The module of a program, in float64 and eval mode; the same one every time.

    A result that is too small or too large on standard normal inputs is rescaled, and one that vanishes is
    shifted by a parameter, as lines of their own: rounding stays small beside what every value amounts to.
    """
    model = RandomModel().double().eval()
    names = [f"x{i}" for i in range(program.inputs)]
    space: dict[str, Any] = {"torch": torch, "F": F, "self": model, **dict(zip(names, program.examples(8, 1)))}
    meanings = {name: Meaning(CARRIER, attributed=True) for name in names}
    lines: list[str] = []

    def run(line: str) -> None:
        for name in re.findall(r"self\.(\w+)", line):
            _add(model, name, program)
        lines.append(line)
        exec(line, space)

    with torch.no_grad():
        for i, step in enumerate(program.steps):
            operands = dict(zip("abc", (names[-1 - r % len(names)] for r in step.operands)))
            *statements, result = _renamed(step.code, operands).split("; ")
            for statement in [*statements, f"v{i} = {result}"]:
                run(statement)
            value = space[f"v{i}"]
            meaning = MEANINGS[step.code](*(meanings[n] for n in operands.values()))
            # An infinity or a NaN stays: whoever built the program sees it.
            size, largest = float(value.square().mean().sqrt()), float(value.abs().max())
            if size < 1e-3:
                run(f"v{i} = v{i} + self.shift")
                meaning = linear(meaning)
            elif size < 0.1 or largest > 20:
                run(f"v{i} = v{i} * {2.0 ** round(-torch.tensor(max(size, largest / 10)).log2().item())}")
                meaning = moved(meaning)
            names.append(f"v{i}")
            meanings[f"v{i}"] = meaning
    outputs = [(form, names[-1 - r % len(names)]) for form, r in program.outputs]
    results = [_renamed(form, {"v": name}) for form, name in outputs]
    for name in re.findall(r"self\.(\w+)", " ".join(results)):
        _add(model, name, program)
    if program.structure == "bare":
        outputs = outputs[:1]
    rest = ", ".join(results[1:])
    lines.append(STRUCTURES[program.structure].format(results[0], all=", ".join(results) + ",", rest=rest))
    model.meanings = [OUTPUTS[form](meanings[name]) for form, name in outputs]
    model.source = "\n    ".join([f"def forward(self, {', '.join(names[: program.inputs])}):", *lines])
    exec(model.source, space)
    model.__class__ = type("RandomModel", (RandomModel,), {"forward": space["forward"]})
    return model.requires_grad_(not program.frozen)


def _renamed(code: str, names: Mapping[str, str]) -> str:
    return re.sub(rf"\b({'|'.join(names)})\b", lambda match: names[match[0]], code) if names else code


def _add(model: nn.Module, name: str, program: Program) -> None:
    """Give the model the submodule, parameter or buffer of that name, if it lacks it."""
    if hasattr(model, name):
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1000 * program.seed + zlib.crc32(name.encode()) % 1000)
        if name in PARAMETERS:
            model.register_parameter(name, nn.Parameter(torch.randn(PARAMETERS[name]).double()))
        elif name in BUFFERS:
            model.register_buffer(name, BUFFERS[name](), persistent=name != "mask")
        else:
            module = MODULES[name]().eval()
            for tensor in (*module.parameters(), *module.buffers()):
                if tensor.is_floating_point():
                    tensor.data.add_(torch.rand_like(tensor) - 0.3)
            model.add_module(name, module if name.endswith("float") else module.double())


# The strategy.

SETTINGS = list(itertools.product(STRUCTURES, (1, 2, 3), (2, 1, 3, 4), (3, 1, 2, 5), (False, True), (False, True)))


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Programs of 3 to 12 steps. Shrinks towards fewer and plainer steps."""
    # Softmaxes that are left to themselves are mostly refused, and the rest of the model with them: rarely drawn.
    codes = [*COMMON * 10, *(code for name, kind in GRAMMAR.items() if name != "pure gate" for code in kind)]
    code = st.sampled_from([*codes, *codes, *GRAMMAR["pure gate"]])
    # Mostly the latest values, so that most steps matter.
    reference = st.sampled_from([0, 0, 0, 1, 1, 2, 3, 4, 6, 9])
    step = code.flatmap(lambda c: st.builds(Step, st.just(c), st.tuples(*[reference] * arity(c))))
    output = st.builds(lambda form, r: (form, r), st.sampled_from(["v", "v", "v", *OUTPUTS]), st.integers(0, 9))
    # Unique by id is not unique at all, but keeps hypothesis from trying every program five times over with one of
    # its steps in another's place. So does it to draw all settings at once.
    steps = draw(st.lists(step, min_size=draw(st.sampled_from([3, 4, 5, 6, 7, 8])), max_size=12, unique_by=id))
    outputs = draw(st.lists(output, max_size=2, unique_by=id))
    structure, inputs, batch, other, strided, frozen = draw(st.sampled_from(SETTINGS))
    # The first output is the last value as it is.
    return Program(
        tuple(steps), (("v", 0), *outputs), structure, inputs, batch, other, strided, frozen, draw(st.integers(0, 99))
    )
