"""`fxgrad.origins`: where a target's value comes from: content, positions, class tokens, biases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.flows.balance import reason
from fxgrad.flows.single import of_one_example, tokens_of_all
from fxgrad.flows.tokens import Tokens
from fxgrad.graph.places import block_of
from fxgrad.methods.completeness import coarsest
from fxgrad.methods.names import Names
from fxgrad.methods.placing import layout
from fxgrad.methods.problem import Problem
from fxgrad.methods.targets import Target
from fxgrad.module.converted import ConvertedModule
from fxgrad.ops.backward import Pairs
from fxgrad.proof.ledger import TOLERANCE
from fxgrad.report import markdown
from fxgrad.run.recording import Contributions
from fxgrad.run.sources import Offsets, reads

KINDS = ("content", "position", "class token", "bias", "function")


@dataclass(frozen=True, eq=False)
class Origin:
    """One part of a target's value.

    Attributes:
        name: of the input, or of the embedding of token ids; of the parameter; of the node where it is neither.
        kind: "content", what comes from the inputs; of constants, by what they add to the tokens: "position", not the
            same to all; "class token", to those ahead of the patches only; "bias", the same to all, or the value has no
            tokens; "function", what a nonlinear function has of its own, such as its value at 0.
        path: path of the module that it enters in; "" for inputs and the model itself.
        value: its share of the target's value.
        tokens: the same token by token, (tokens,); None where the value has no tokens.
        names: of these tokens.
    """

    name: str
    kind: str
    path: str
    value: float
    tokens: Tensor | None
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Origins:
    """Where a target's value comes from; see `fxgrad.origins`.

    Attributes:
        target: the target, in words.
        rules: the policy.
        value: the target's value.
        parts: all of it, in the order of the model, without constants that are 0. Their values add up to the target's.
        error: by how much they do not, relative to the target's value, or to the sum of their sizes if that is larger.
    """

    target: str
    rules: str
    value: float
    parts: tuple[Origin, ...]
    error: float

    @property
    def kinds(self) -> dict[str, float]:
        """Kind -> its share of the target's value, of all kinds that there are."""
        there = {part.kind for part in self.parts}
        return {kind: sum(p.value for p in self.parts if p.kind == kind) for kind in KINDS if kind in there}

    @property
    def layers(self) -> dict[str, float]:
        """Block, or module where that is in none -> the share of its biases and functions."""
        found: dict[str, float] = {}
        for part in self.parts:
            if part.kind in ("bias", "function"):
                layer = block_of(part.path) or part.path
                found[layer] = found.get(layer, 0.0) + part.value
        return found

    def __str__(self) -> str:
        head = f"{self.target}: {self.value:.4g}, {self.rules}, off by {self.error:.1e}"
        rows = [(kind, f"{value:.4g}") for kind, value in self.kinds.items()]
        return "\n".join([head, "", *markdown(["from", "share"], rows)])


def origins(
    converted: ConvertedModule,
    args: tuple[Any, ...] | Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: Target,
    class_names: Names | None = None,
    token_names: Sequence[str] | None = None,
) -> Origins:
    """Where a target's value comes from: what the model was shown, where things stand, what it has of its own.

    A balanced backward adds up, so the target's value is split exactly over the inputs (pixels, token embeddings) and
    all constants: embeddings of positions, class tokens, the biases of every layer.

    Args:
        converted: what `fxgrad.convert` returned, under a policy that balances.
        args, kwargs: one example, as for calling the module.
        target: as for `fxgrad.attribute`.
        class_names: for targets by name, as for `fxgrad.attribute`.
        token_names: the input's tokens as text.

    Returns:
        The parts, by kind (`.kinds`), by layer (`.layers`), and each with its tokens (`.parts`). Positions that only
        turn queries and keys (rotary ones), or are added to attention's scores, are held, and have no share.

    Raises:
        InputError: several examples, a policy or a target that does not add up.
        NotBalanceableError, NoRuleError: the target reads an output that cannot be balanced.

    Example:
        >>> import fxgrad, timm, torch
        >>> vit = timm.create_model("test_vit", img_size=32, num_classes=5).eval()
        >>> x = torch.randn(1, 3, 32, 32)
        >>> found = origins(fxgrad.convert(vit, (x,)), (x,), target=3)
        >>> list(found.kinds), found.error < 1e-5
        (['content', 'position', 'class token', 'bias'], True)
        >>> [(part.name, tuple(part.tokens.shape)) for part in found.parts if part.kind == "position"]
        [('pos_embed', (5,))]

    Source: FullGrad, arXiv:1905.00780, for biases as parts of the whole; LibraGrad, arXiv:2411.16760, for the gradient.
    """
    call = "fxgrad.origins"
    problem = of_one_example(converted, args, kwargs, target, class_names, call, call)
    sources = {n for n, d in converted.classified.decisions.items() if d.keeps}
    found = problem.run({*sources, *reads(converted)}, sources=True)
    entries = {problem.inputs[name].name: value for name, value in found.inputs.items()}
    placed = {n: v for n, v in {**entries, **found.values}.items() if n in (entries.keys() | sources)}
    last = problem.anatomy.blocks[-1].exit if problem.anatomy.blocks else None
    tensors = {name: value for name, value in placed.items() if isinstance(value, Tensor)}
    tokens = tokens_of_all(problem, tensors, last, token_names)
    parts = [*_content(problem, found, tokens), *_constants(problem, found, tokens)]
    value, sizes = float(problem.aim.values[0]), sum(abs(part.value) for part in parts)
    error = abs(value - sum(part.value for part in parts)) / (max(abs(value), sizes) or 1.0)
    if not error <= TOLERANCE[coarsest(problem.aim.values, problem)]:
        start = f"origins have to add up, and these are off by {error:.2g} of the whole"
        raise InputError(start + reason(problem))
    return Origins(problem.aim.target.label, converted.classified.table.name, value, tuple(parts), error)


def _content(problem: Problem, found: Contributions, tokens: Mapping[str, Tokens]) -> Iterator[Origin]:
    """The shares of the inputs."""
    for name, value in found.inputs.items():
        own = tokens[problem.inputs[name].name]
        yield _origin(name, "content", "", own.sums(found.gradients[name], value), own)


def _constants(problem: Problem, found: Contributions, tokens: Mapping[str, Tokens]) -> Iterator[Origin]:
    """The shares of the constants, node by node."""
    offsets, decisions = Offsets(problem.converted, found.values), problem.converted.classified.decisions
    for name, shares in found.sources.items():
        if not any(bool(share.any()) for share in shares):
            continue
        decision, own = decisions.get(name), tokens.get(name)
        if decision is None:  # an output that depends on no input
            yield _origin(name, "bias", "", _total(shares), None)
            continue
        kind = _kind(problem, name, offsets.of(decision, found.cotangents[name])) if decision.sources else "function"
        whole = own is None or len(shares) > 1 or shares[0].shape != own.labels.shape or len(own.about) == 1
        label = ", ".join(decision.sources) or name
        if own is None or whole:
            yield _origin(label, kind, decision.place.module_path, _total(shares), None)
        else:
            yield _origin(label, kind, decision.place.module_path, own.added(shares[0]), own)


def _kind(problem: Problem, name: str, pairs: Pairs) -> str:
    """The kind of a constant, by what it adds to the tokens of a node's value."""
    offset = pairs[0][1] if len(pairs) == 1 else None
    node = problem.nodes[name]
    place = layout(offset, node, problem.anatomy, 1) if isinstance(offset, Tensor) else None
    if offset is None or place is None or tuple(offset.shape) != tuple(problem.values([name])[name].shape):
        return "bias"
    rows = place.rows(offset)[0]
    if bool((rows == rows[:1]).all()):
        return "bias"
    return "class token" if place.ahead and not bool(rows[place.ahead :].any()) else "position"


def _total(shares: Sequence[Tensor]) -> Tensor:
    return torch.stack([share.sum() for share in shares]).sum()


def _origin(name: str, kind: str, path: str, shares: Tensor, tokens: Tokens | None) -> Origin:
    """One part, of which the shares are those of its tokens, or its own."""
    names = () if tokens is None else tuple(about["name"] for about in tokens.about)
    return Origin(name, kind, path, float(shares.double().sum()), None if tokens is None else shares, names)
