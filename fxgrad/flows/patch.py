"""`fxgrad.patching`: what it does to a target to replace single values inside a model by those of another input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Union

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxgrad.errors import InputError
from fxgrad.flows.cuts import asked, flow_of
from fxgrad.flows.effects import Effects
from fxgrad.flows.patched import Patching
from fxgrad.flows.single import of_one_example, tokens_of_all
from fxgrad.flows.tokens import Tokens
from fxgrad.flows.units import Asked, Place
from fxgrad.graph.places import place_of
from fxgrad.methods.names import Names
from fxgrad.methods.problem import Problem
from fxgrad.methods.targets import Target
from fxgrad.module.converted import ConvertedModule
from fxgrad.run.runs import Runs

Arguments = Union[tuple[Any, ...], Tensor, Mapping[str, Any]]
"""A model's inputs: positional ones, or by name."""
RUNS = ("clean", "corrupt")


def patching(
    converted: ConvertedModule,
    clean: Arguments,
    corrupt: Arguments,
    *,
    target: Target,
    cuts: Sequence[Place] | None = None,
    run: str = "clean",
    effects: bool = False,
    class_names: Names | None = None,
    token_names: Sequence[str] | None = None,
) -> Patching:
    """Attribution patching: how much a target changes when one token inside a model becomes that of another input.

    With h the values of a token in the run, h' those in the other run, and g the target's gradient at h:

    - the estimate is the sum over the token's elements of (h' - h) g;
    - the effect is the target's value once h' is put in the place of h, and the rest of the captured model has run
      again, minus the target's value in the run.

    So a positive number says that h' raises the target. In the clean run (noising), parts that the target needs get
    negative numbers; in the corrupt run (denoising), parts that bring it back get positive ones.

    Args:
        converted: what `fxgrad.convert` returned. Its policy says which gradient g is: "gradient" is attribution
            patching as published, a balanced one is RelP.
        clean, corrupt: two inputs of one example and of equal shapes: a tensor, a tuple, or a dict by name.
        target: as for `fxgrad.attribute`; with None, the class with the largest logit in `run`.
        cuts: module paths, for what leaves these modules; or `fxgrad.Heads`, `fxgrad.Channels`, which divide each
            token. By default what enters each block.
        run: the run in which the gradient is taken, and into which the other's values are put: "clean" or "corrupt".
        effects: whether to compute the effects, too. It takes about half a forward pass for each token of each cut,
            many in one batch; the estimates take two forward passes and one backward pass in all.
        class_names: for targets by name, as for `fxgrad.attribute`.
        token_names: the tokens of the input of `run`, as text.

    Returns:
        The numbers by cut and token, named as in `fxgrad.flow`.

    Raises:
        InputError: inputs of different shapes, several examples, no such run or module, or none of the target's
            gradient reaches a cut under this policy.
        NotBalanceableError, NoRuleError: the target reads an output that cannot be balanced.

    Example:
        >>> import fxgrad, timm
        >>> vit = timm.create_model("test_vit", img_size=32, num_classes=5).eval()
        >>> x = torch.randn(1, 3, 32, 32)
        >>> libra = fxgrad.convert(vit, (x,))
        >>> found = patching(libra, x, torch.zeros_like(x), target=3, cuts=["blocks.1", "norm"], effects=True)
        >>> found.estimate["blocks.1"].shape, found.nodes["norm"][0]
        (torch.Size([5]), 'norm[0]')
        >>> round(found.correlation["norm"].pearson, 4)  # behind it the model is linear
        1.0

    Source: Nanda, Attribution Patching, neelnanda.io 2023, and Syed et al., Attribution Patching Outperforms Automated
    Circuit Discovery, arXiv:2310.10348, for the plain gradient; Kramár et al., AtP*, arXiv:2403.00745, for its faults;
    RelP, arXiv:2508.21258, for a balanced gradient in its place.
    """
    if run not in RUNS:
        raise InputError(f'run is "clean" or "corrupt", not {run!r}.')
    if isinstance(cuts, str):
        raise InputError(f"cuts are several module paths. Pass cuts=[{cuts!r}].")
    own, other = (clean, corrupt) if run == "clean" else (corrupt, clean)
    problem = of_one_example(converted, *_split(own), target, class_names, "patching", "fxgrad.patching")
    places = {place.name: place for place in asked(problem, cuts, flow_of(problem))}
    if not places:
        raise InputError("the model has no blocks that the target's gradient reaches. Pass cuts=[...], module paths.")
    nodes = list(dict.fromkeys(place.node for place in places.values()))
    found = problem.run(nodes)
    values = {name: found.values[name] for name in nodes}
    others, value = _of_the_other(problem, other, values)
    whole = tokens_of_all(problem, values, nodes[-1], token_names)
    tokens = {cut: _divided(problem, place, whole[place.node], values) for cut, place in places.items()}
    changes = {name: (found.cotangents[name], others[name] - values[name]) for name in nodes}
    both = {"clean": value, "corrupt": value, run: float(problem.aim.values[0])}
    return Patching(
        target=problem.aim.target.label,
        rules=converted.classified.table.name,
        run=run,
        **both,
        about={cut: own.about for cut, own in tokens.items()},
        nodes={cut: tuple(f"{cut}[{key}]" for key in own.keys) for cut, own in tokens.items()},
        estimate={cut: _estimate(own, *changes[places[cut].node]) for cut, own in tokens.items()},
        effect=_effects(problem, places, tokens, values, others) if effects else {},
    )


def _split(inputs: Arguments) -> tuple[Any, Any]:
    """(args, kwargs)."""
    return ((), inputs) if isinstance(inputs, Mapping) else (inputs, None)


def _of_the_other(problem: Problem, inputs: Arguments, values: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], float]:
    """(the values of the same nodes at the other input, the target's value there)."""
    with torch.no_grad():
        entries = problem.converted.entries(*_split(inputs))
    for name, own, other in zip(problem.inputs, problem.entries, entries):
        if isinstance(own, Tensor) and own.shape != other.shape:
            shapes = f"{tuple(own.shape)} in the one and {tuple(other.shape)} in the other"
            raise InputError(f"clean and corrupt have equal shapes, and {name!r} is {shapes}. Pad or cut them alike.")
    runs = Runs(problem.converted, entries, values.keys())
    outputs = pytree.tree_unflatten(runs.looked(), problem.converted.classified.captured.out_spec)
    found = runs.values(values.keys())
    for name, value in values.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape != found[name].shape:
            raise InputError(
                f"the value at {place_of(problem.nodes[name])} is no tensor of floating dtype, or has another shape in "
                "the other run, so that its tokens cannot be exchanged. Cut elsewhere."
            )
    with torch.no_grad():
        return found, float(problem.aim.target.score(outputs)[0])


def _estimate(tokens: Tokens, g: Tensor | None, difference: Tensor) -> Tensor:
    """(h' - h) g, token by token."""
    return tokens.sums(torch.zeros_like(difference) if g is None else g, difference)


def _effects(
    problem: Problem,
    places: Mapping[str, Asked],
    tokens: Mapping[str, Tokens],
    values: Mapping[str, Tensor],
    others: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The effects by cut."""
    again = Effects(problem, values, max(len(own.about) for own in tokens.values()))
    return {cut: again.of(places[cut].node, own, others[places[cut].node]) for cut, own in tokens.items()}


def _divided(problem: Problem, place: Asked, tokens: Tokens, values: Mapping[str, Tensor]) -> Tokens:
    """The tokens at a place, divided as was asked for."""
    return tokens if place.by is None else place.by.divided(tokens, values[place.node], problem.nodes[place.node])
