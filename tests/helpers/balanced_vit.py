"""A small vision transformer and, by hand in plain autograd, its balanced form: what the attribution methods must agree with.

Nothing here imports fxgrad. Gates, attention weights and norms' scales are detached; biases are leaves of their own,
one element per token, so that autograd itself says what each contributes where.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE, PATCH, WIDTH, HEADS, CLASSES = 12, 3, 8, 2, 5
GRID = SIDE // PATCH
TOKENS = 1 + GRID * GRID


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Class token, two blocks, and a head that reads the class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos = nn.Parameter(torch.randn(1, TOKENS, WIDTH) / 2)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def vit() -> tuple[ViT, Tensor]:
    """The model in float64, all of its constants far from 0, and two pictures."""
    torch.manual_seed(1)
    model = ViT().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 5)
    return model, torch.randn(2, 3, SIDE, SIDE).double()


@dataclass
class Trace:
    """One run: what enters each block, attention weights, values, residual branches, and sources with where they come in.

    A source's place is the number of the block that it belongs to: -1 ahead of all, 2 behind.
    """

    x: Tensor
    output: Tensor
    h: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    middle: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    sources: list[tuple[int, Tensor]] = field(default_factory=list)

    def gradients(self, tensors: list[Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(self.output.sum(), tensors, retain_graph=True))


def trace(model: ViT, x: Tensor, classes: Tensor, balanced: bool, tokens: Tensor | None = None) -> Trace:
    """Run the model, balanced or as it is, and keep everything that a method may ask for; from these tokens, if given."""
    t = Trace(x.clone().requires_grad_(), x)

    def held(value: Tensor) -> Tensor:
        return value.detach() if balanced else value

    def source(place: int, b: Tensor, like: Tensor) -> Tensor:
        leaf = b.detach().expand_as(like).clone().requires_grad_()
        t.sources.append((place, leaf))
        return leaf

    def linear(place: int, layer: nn.Linear, x: Tensor) -> Tensor:
        y = F.linear(x, layer.weight)
        return y + source(place, layer.bias, y)

    def norm(place: int, layer: nn.LayerNorm, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        y = centred / held((x.var(-1, unbiased=False, keepdim=True) + layer.eps).sqrt()) * layer.weight
        return y + source(place, layer.bias, y)

    y = F.conv2d(t.x, model.patches.weight, stride=PATCH).flatten(2).transpose(1, 2)
    y = y + source(-1, model.patches.bias, y)
    y = F.pad(y, (0, 0, 1, 0)) + source(-1, F.pad(model.cls, (0, 0, 0, GRID * GRID)), F.pad(y, (0, 0, 1, 0)))
    y = y + source(-1, model.pos, y)
    y = y if tokens is None else tokens.detach().requires_grad_()
    for i, block in enumerate(model.blocks):
        t.h.append(y)
        normed = norm(i, block.norm1, y)
        if balanced:  # queries and keys are held, so their biases contribute nothing
            qk = F.linear(normed, block.qkv.weight, block.qkv.bias).detach()[..., : 2 * WIDTH]
            value = F.linear(normed, block.qkv.weight[2 * WIDTH :])
            value = value + source(i, block.qkv.bias[2 * WIDTH :], value)
        else:
            qk, value = linear(i, block.qkv, normed).split([2 * WIDTH, WIDTH], -1)
        q, k, v = (u.unflatten(-1, (HEADS, -1)).transpose(1, 2) for u in (*qk.chunk(2, -1), value))
        a = (q @ k.mT * (WIDTH // HEADS) ** -0.5).softmax(-1)
        a = a.detach().requires_grad_() if balanced else a
        t.weights.append(a)
        t.values.append(v.transpose(1, 2).flatten(2))
        y = y + linear(i, block.proj, (a @ v).transpose(1, 2).flatten(2))
        hidden = linear(i, block.fc1, norm(i, block.norm2, y))
        gate = 0.5 * (1 + torch.erf(hidden / 2**0.5))
        branch = linear(i, block.fc2, hidden * held(gate))
        t.middle.append((y, branch))
        y = y + branch
    t.h.append(y)
    read = norm(2, model.norm, y)[:, 0]
    logits = linear(2, model.head, read)
    t.output = logits.gather(1, classes[:, None])[:, 0]
    return t


def decomposed(model: ViT, x: Tensor) -> Tensor:
    """What every patch contributes to every logit: each vector as a sum over origins, carried forwards layer by layer.

    Returns (batch, patches and one for all constants, classes).

    Source: Modarressi et al., DecompX, ACL 2023, arXiv:2306.02873; with norms' scales and activations' gates as they were.
    """
    with torch.no_grad():
        y = model.patches(x).flatten(2).transpose(1, 2)
        bare = F.conv2d(x, model.patches.weight, stride=PATCH).flatten(2).transpose(1, 2)
        y = torch.cat([model.cls.expand(len(x), -1, -1), y], 1) + model.pos
        n = GRID * GRID
        parts = torch.zeros(len(x), TOKENS, n + 1, WIDTH).to(x)  # batch, where, from where, channels
        parts[:, torch.arange(1, TOKENS), torch.arange(n)] = bare
        parts[:, :, n] = y - parts.sum(2)

        def linear(layer: nn.Linear, p: Tensor) -> Tensor:
            p = p @ layer.weight.T
            p[:, :, n] += layer.bias
            return p

        def norm(layer: nn.LayerNorm, p: Tensor) -> Tensor:
            scale = (p.sum(2).var(-1, unbiased=False) + layer.eps).sqrt()[:, :, None, None]
            p = (p - p.mean(-1, keepdim=True)) / scale * layer.weight
            p[:, :, n] += layer.bias
            return p

        for block in model.blocks:
            q, k, v = linear(block.qkv, norm(block.norm1, parts)).chunk(3, -1)
            q, k = (u.sum(2).unflatten(-1, (HEADS, -1)).transpose(1, 2) for u in (q, k))
            a = (q @ k.mT * (WIDTH // HEADS) ** -0.5).softmax(-1)
            mixed = torch.einsum("bhij,bjnhc->binhc", a, v.unflatten(-1, (HEADS, -1))).flatten(3)
            parts = parts + linear(block.proj, mixed)
            hidden = linear(block.fc1, norm(block.norm2, parts))
            total = hidden.sum(2, keepdim=True)
            parts = parts + linear(block.fc2, hidden * 0.5 * (1 + torch.erf(total / 2**0.5)))
        return linear(model.head, norm(model.norm, parts)[:, :1])[:, 0]
