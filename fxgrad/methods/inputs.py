"""Methods of the inputs: gradients, and averages of gradients; a map for every attributed input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.methods.definition import Map, method
from fxgrad.methods.ends import ends
from fxgrad.methods.options import refuse_few
from fxgrad.methods.parts import BLOCKS, INPUTS, NOTHING
from fxgrad.methods.placing import resample
from fxgrad.methods.problem import Problem
from fxgrad.run.recording import Contributions
from fxgrad.run.sources import wide


@method(of_inputs=True, reads=INPUTS)
def gradient(problem: Problem) -> Map:
    """g = dy/dx, summed over channels.

    Source: Simonyan, Vedaldi, Zisserman, Deep Inside Convolutional Networks, arXiv:1312.6034, section 3.
    """
    return Map(maps=_maps(problem, problem.run().gradients))


@method(of_inputs=True, reads=INPUTS)
def saliency(problem: Problem) -> Map:
    """max_c |dy/dx|: the largest sensitivity among the channels.

    Source: Simonyan, Vedaldi, Zisserman, arXiv:1312.6034, section 3.1.
    """
    return Map(maps=_maps(problem, {name: g.abs() for name, g in problem.run().gradients.items()}, over=torch.amax))


@method(shares=True, of_inputs=True, reads=BLOCKS)
def input_x_gradient(problem: Problem, at: str = "input") -> Map:
    """sum_c x * dy/dx. The contributions of constants are kept apart.

    at="tokens" takes x to be what enters the first block: patches after their embedding, with their positions, and the
    class token. The map is then of tokens.

    Source: Shrikumar et al., Not Just a Black Box, arXiv:1605.01713; LibraGrad, arXiv:2411.16760, for the gradient, and
    for the tokens, which its experiments take.
    """
    chosen = ends(problem, "input_x_gradient", at)
    if chosen.node is None:
        found = problem.run(sources=True)
        return Map(apart=problem.kept(found, problem.behind()), maps=products(problem, found))
    found = problem.run([chosen.node], sources=True)
    value, g = found.values[chosen.node], found.cotangents[chosen.node]
    behind = problem.behind(chosen.node)
    map = chosen.map(
        {chosen.node: torch.zeros_like(value) if g is None else wide(value) * g}, problem.kept(found, behind)
    )
    return replace(map, maps=problem.beside(found, behind))


def products(problem: Problem, found: Contributions) -> dict[str, Tensor]:
    """sum_c x * dy/dx of every input."""
    return _maps(problem, {name: wide(x) * found.gradients[name] for name, x in found.inputs.items()})


@method(of_inputs=True, reads=NOTHING, passes="own", steps="n_steps")
def integrated_gradients(
    problem: Problem,
    n_steps: int = 50,
    baseline: float = 0.0,
    at: str = "input",
    rule: str = "gausslegendre",
    along: bool = False,
) -> Map:
    """(x - x0) * mean of dy/dx along the straight line from x0 to x, all inputs together.

    The target's value at x0 is kept apart. n_steps is the number of points, baseline the value of all of x0. The rule
    places the points: "gausslegendre", or "riemann_right" at 1/n, 2/n ... 1. at="tokens" takes x to be what enters the
    first block. along=True multiplies each gradient by its own point's (x' - x0) instead, the mean of Input x Gradient
    along the line, as LibraGrad's published code does; that adds up to no difference of values, so nothing is kept
    apart.

    Source: Sundararajan, Taly, Yan, Axiomatic Attribution for Deep Networks, ICML 2017, arXiv:1703.01365, eqs. 1 and 3.
    """
    refuse_few("n_steps", n_steps)
    if rule not in RULES:
        raise InputError(f"rule is {' or '.join(map(repr, RULES))}, not {rule!r}: how the points are placed.")
    chosen = ends(problem, "integrated_gradients", at)
    starts = {name: torch.full_like(x, baseline) for name, x in chosen.values.items()}
    total = {name: torch.zeros_like(x) for name, x in chosen.values.items()}
    for share, weight in RULES[rule](n_steps):
        between = {name: starts[name] + share * (x - starts[name]) for name, x in chosen.values.items()}
        for name, g in chosen.gradients(between).items():
            total[name] = total[name] + weight * (g * (between[name] - starts[name]) if along else g)
    if along:
        return chosen.map(total)
    shares = {name: (x - starts[name]) * total[name] for name, x in chosen.values.items()}
    return chosen.map(shares, chosen.moved(starts).values_of_target())


def _gausslegendre(n_steps: int) -> list[tuple[float, float]]:
    points = zip(*np.polynomial.legendre.leggauss(n_steps))
    return [((1 + float(at)) / 2, float(np.float32(width / 2))) for at, width in points]  # captum rounds weights so


def _riemann_right(n_steps: int) -> list[tuple[float, float]]:
    return [((step + 1) / n_steps, 1 / n_steps) for step in range(n_steps)]


RULES: dict[str, Callable[[int], list[tuple[float, float]]]] = {
    "gausslegendre": _gausslegendre,
    "riemann_right": _riemann_right,
}
"""Number of points -> (place between 0 and 1, weight) of each."""


@method(of_inputs=True, reads=NOTHING, passes="own")
def smoothgrad(problem: Problem, samples: int = 25, noise: float = 0.15, seed: int = 0, at: str = "input") -> Map:
    """Mean of dy/dx over noisy copies of x, summed over channels.

    noise is the standard deviation, as a share of the range of each example's x. at="tokens" takes x to be what enters
    the first block.

    Source: Smilkov et al., SmoothGrad: removing noise by adding noise, arXiv:1706.03825.
    """
    refuse_few("samples", samples)
    chosen = ends(problem, "smoothgrad", at)
    generator = torch.Generator().manual_seed(seed)
    total = {name: torch.zeros_like(x) for name, x in chosen.values.items()}
    spans = chosen.spans()
    for _ in range(samples):
        noisy = {n: x + noise * spans[n] * _normal(x, generator) for n, x in chosen.values.items()}
        for name, g in chosen.gradients(noisy).items():
            total[name] = total[name] + g / samples
    return chosen.map(total)


@method(takes_gradient=False, reads=NOTHING)
def random(problem: Problem, seed: int = 0) -> Map:
    """Normal noise on the tokens: the baseline that every method should beat."""
    total = problem.anatomy.count + problem.anatomy.prefix
    noise = torch.randn(problem.batch, total, generator=torch.Generator().manual_seed(seed))
    return Map(tokens=noise.to(next(e for e in problem.entries if isinstance(e, Tensor)).device))


def _maps(problem: Problem, parts: Mapping[str, Tensor], over: Callable[..., Tensor] = torch.sum) -> dict[str, Tensor]:
    """A map of every attributed input, each reduced over its channels by `over`."""
    return {name: problem.reduced(name, values, over) for name, values in parts.items()}


def on_tokens(problem: Problem, map: Tensor, method: str) -> Tensor:
    """A map of the input as a map of tokens: a patch gets the sum of its pixels, prefix tokens get 0.

    Raises:
        InputError: the input's map is of other things than the model's tokens.
    """
    anatomy = problem.anatomy
    if anatomy.size is not None and anatomy.grid is not None and len(anatomy.size) == len(anatomy.grid):
        patches = resample(map, anatomy.grid).flatten(1)
        return torch.nn.functional.pad(patches, (anatomy.prefix, 0))
    tokens = anatomy.prefix + anatomy.count
    if map.shape[1:] != (tokens,):
        raise InputError(
            f"{method} puts what constants contribute on the {tokens} tokens of the model's blocks, and the map of "
            f"input {anatomy.input!r} is {tuple(map.shape)}. Use input_x_gradient, whose .maps have every input."
        )
    return map


def _normal(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=torch.float32).to(x)
