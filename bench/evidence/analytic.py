"""One block whose shares are known in closed form, and a sum over tokens whose Shapley values are.

`python -m bench.evidence.analytic` prints how far Input x Gradient under every policy is from both. The first is what
libragrad's rules say, worked out by hand: it tests the code. The second knows no rule: each token's Shapley value,
which in a sum is the token's own summand.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxgrad
from fxgrad.evaluate.plan import POLICIES
from fxgrad.report import markdown

TOKENS, WIDTH, HIDDEN, CLASSES = 9, 8, 16, 3


class Block(nn.Module):
    """A transformer block with one head, read at its first token: float (batch, 9, 8) to logits (batch, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH), nn.Linear(WIDTH, CLASSES)
        for name, parameter in self.named_parameters():
            if "norm" in name:
                nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm1(x)
        x = x + self.o(F.scaled_dot_product_attention(self.q(n), self.k(n), self.v(n)))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        logits: Tensor = self.head(x[:, 0])
        return logits


@torch.no_grad()
def shares(model: Block, x: Tensor, target: int) -> Tensor:
    """Each token's share of a logit of `Block` by the paper's rules, written out: float (batch, tokens).

    Attention weights, the norms' standard deviations and GELU's gates are numbers here; what is left is linear in x.

    Source: LibraGrad, arXiv:2411.16760, section 4: the rules for attention, normalisation and gated activations.
    """

    def normed(norm: nn.LayerNorm, of: Tensor, at: Tensor) -> Tensor:
        centred = of - of.mean(-1, keepdim=True)
        return centred / (at.var(-1, correction=0, keepdim=True) + norm.eps).sqrt() * norm.weight

    n = model.norm1(x)
    weights = (model.q(n) @ model.k(n).mT / math.sqrt(WIDTH)).softmax(-1)[:, 0]
    # What each token j gives to the first token behind the attention: (batch, j, width).
    given = weights[..., None] * (normed(model.norm1, x, x) @ model.v.weight.T @ model.o.weight.T)
    given[:, 0] += x[:, 0]
    middle = x[:, :1] + model.o(weights[:, None] @ model.v(n))
    hidden = model.up(model.norm2(middle))
    gate = 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    given = given + (normed(model.norm2, given, middle) @ model.up.weight.T * gate) @ model.down.weight.T
    found: Tensor = given @ model.head.weight[target]
    return found


class Summed(nn.Module):
    """Each token by itself through a norm and a gated MLP, then the sum: float (batch, 9, 8) to logits (batch, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN, bias=False), nn.Linear(HIDDEN, CLASSES, bias=False)
        nn.init.normal_(self.norm.weight, mean=1.0, std=0.3)

    def each(self, x: Tensor) -> Tensor:
        """The tokens' summands, (batch, tokens, 3): their Shapley values, where a token that is left out is 0."""
        found: Tensor = self.down(F.gelu(self.up(self.norm(x))))
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.each(x).sum(1)


def errors(examples: int = 50, seed: int = 0) -> dict[str, dict[str, float]]:
    """Policy -> model -> |shares - truth| over |truth|, both summed over tokens and examples; float64."""
    torch.manual_seed(seed)
    block, summed = Block().double().eval(), Summed().double().eval()
    x = torch.randn(examples, TOKENS, WIDTH, dtype=torch.float64)
    truths = {"block": (block, shares(block, x, 1)), "sum": (summed, summed.each(x)[..., 1].detach())}
    found: dict[str, dict[str, float]] = {policy: {} for policy in POLICIES}
    for name, (model, truth) in truths.items():
        libra = fxgrad.convert(model, (x,))
        for policy in POLICIES:
            one = fxgrad.attribute(libra.under(policy), (x,), target=1, method="input_x_gradient")
            found[policy][name] = float((one.map.double() - truth).abs().sum() / truth.abs().sum())
    return found


def table() -> list[str]:
    """The table as Markdown lines."""
    rows = [[policy, *(map(_shown, by_model.values()))] for policy, by_model in errors().items()]
    return markdown(["policy", "one block, by the paper's rules", "a sum over tokens, by Shapley values"], rows)


def _shown(error: float) -> str:
    """Rounding is not the same on every machine, so the page does not have its digits."""
    return "< 1e-12" if error < 1e-12 else f"{error:.2f}"


if __name__ == "__main__":
    print("\n".join(table()))
