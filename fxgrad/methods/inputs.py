"""Methods of the inputs: gradients, and averages of gradients; a map for every attributed input."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.methods.definition import method
from fxgrad.methods.options import refuse_few
from fxgrad.methods.placing import resample
from fxgrad.methods.problem import Map, Problem
from fxgrad.run.recording import Contributions


@method(of_inputs=True)
def gradient(problem: Problem) -> Map:
    """g = dy/dx, summed over channels.

    Source: Simonyan, Vedaldi, Zisserman, Deep Inside Convolutional Networks, arXiv:1312.6034, section 3.
    """
    return Map(maps=_maps(problem, problem.run().gradients))


@method(of_inputs=True)
def saliency(problem: Problem) -> Map:
    """max_c |dy/dx|: the largest sensitivity among the channels.

    Source: Simonyan, Vedaldi, Zisserman, arXiv:1312.6034, section 3.1.
    """
    return Map(maps=_maps(problem, {name: g.abs() for name, g in problem.run().gradients.items()}, over=torch.amax))


@method(shares=True, of_inputs=True)
def input_x_gradient(problem: Problem) -> Map:
    """sum_c x * dy/dx. The contributions of constants are kept apart.

    Source: Shrikumar et al., Not Just a Black Box, arXiv:1605.01713; LibraGrad, arXiv:2411.16760, for the gradient.
    """
    found = problem.run(sources=True)
    return Map(apart=problem.kept(found, problem.behind()), maps=products(problem, found))


def products(problem: Problem, found: Contributions) -> dict[str, Tensor]:
    """sum_c x * dy/dx of every input."""
    return _maps(problem, {name: x * found.gradients[name] for name, x in found.inputs.items()})


@method(of_inputs=True, steps="n_steps")
def integrated_gradients(problem: Problem, n_steps: int = 50, baseline: float = 0.0) -> Map:
    """(x - x0) * mean of dy/dx along the straight line from x0 to x, all inputs together.

    The target's value at x0 is kept apart. n_steps is the number of points (of Gauss and Legendre), baseline the value
    of all of x0.

    Source: Sundararajan, Taly, Yan, Axiomatic Attribution for Deep Networks, ICML 2017, arXiv:1703.01365.
    """
    refuse_few("n_steps", n_steps)
    ends = {name: problem.entries[i] for i, name in enumerate(problem.inputs) if name in problem.attributed}
    starts = {name: torch.full_like(x, baseline) for name, x in ends.items()}
    total = {name: torch.zeros_like(x) for name, x in ends.items()}
    for place, width in zip(*np.polynomial.legendre.leggauss(n_steps)):
        share, weight = (1 + float(place)) / 2, float(np.float32(width / 2))  # captum rounds the weights to float32
        between = {name: starts[name] + share * (x - starts[name]) for name, x in ends.items()}
        for name, g in problem.at(between).run().gradients.items():
            total[name] = total[name] + weight * g
    shares = {name: (x - starts[name]) * total[name] for name, x in ends.items()}
    return Map(apart=problem.at(starts).values_of_target(), maps=_maps(problem, shares))


@method(of_inputs=True)
def smoothgrad(problem: Problem, samples: int = 25, noise: float = 0.15, seed: int = 0) -> Map:
    """Mean of dy/dx over noisy copies of x, summed over channels.

    noise is the standard deviation, as a share of the range of x.

    Source: Smilkov et al., SmoothGrad: removing noise by adding noise, arXiv:1706.03825.
    """
    refuse_few("samples", samples)
    ends = {name: problem.entries[i] for i, name in enumerate(problem.inputs) if name in problem.attributed}
    generator = torch.Generator().manual_seed(seed)
    total = {name: torch.zeros_like(x) for name, x in ends.items()}
    for _ in range(samples):
        noisy = {name: x + noise * (x.max() - x.min()) * _normal(x, generator) for name, x in ends.items()}
        for name, g in problem.at(noisy).run().gradients.items():
            total[name] = total[name] + g / samples
    return Map(maps=_maps(problem, total))


@method(takes_gradient=False)
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
