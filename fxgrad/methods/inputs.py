"""Methods of the input: gradients, and averages of gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.methods.definition import method
from fxgrad.methods.placing import resample
from fxgrad.methods.problem import Map, Problem
from fxgrad.run.recording import Contributions


def gradient(problem: Problem) -> Map:
    """g = dy/dx, summed over channels.

    Source: Simonyan, Vedaldi, Zisserman, Deep Inside Convolutional Networks, arXiv:1312.6034, section 3.
    """
    return _mapped(problem, problem.run().gradients)


def saliency(problem: Problem) -> Map:
    """max_c |dy/dx|: the largest sensitivity among the channels.

    Source: Simonyan, Vedaldi, Zisserman, arXiv:1312.6034, section 3.1.
    """
    return _mapped(problem, {name: g.abs() for name, g in problem.run().gradients.items()}, over=_largest)


@method(shares=True)
def input_x_gradient(problem: Problem) -> Map:
    """sum_c x * dy/dx. The contributions of constants are kept apart.

    Source: Shrikumar et al., Not Just a Black Box, arXiv:1605.01713; LibraGrad, arXiv:2411.16760, for the gradient.
    """
    found = problem.run(sources=True)
    everywhere = problem.behind()
    map = products(problem, found)
    return Map(map.pixels, map.tokens, problem.kept(found, everywhere) + problem.beside(found, everywhere))


def products(problem: Problem, found: Contributions) -> Map:
    """sum_c x * dy/dx of the main inputs."""
    return _mapped(problem, {name: x * found.gradients[name] for name, x in found.inputs.items()})


def integrated_gradients(problem: Problem, n_steps: int = 50, baseline: float = 0.0) -> Map:
    """(x - x0) * mean of dy/dx along the straight line from x0 to x, by captum's `IntegratedGradients`.

    The target's value at x0 is kept apart. n_steps is the number of points, baseline the value of all of x0.

    Source: Sundararajan, Taly, Yan, Axiomatic Attribution for Deep Networks, ICML 2017, arXiv:1703.01365.
    """
    explainer = _captum("IntegratedGradients")
    forward, inputs, others = _forward(problem)
    start = tuple(torch.full_like(x, baseline) for x in inputs)
    found = explainer(forward).attribute(
        inputs, baselines=start, additional_forward_args=others, n_steps=n_steps, internal_batch_size=len(inputs[0])
    )
    with torch.no_grad():
        at_start = forward(*start, *others)
    map = _mapped(problem, dict(zip(problem.main, found)))
    return Map(map.pixels, map.tokens, at_start)


def smoothgrad(problem: Problem, samples: int = 25, noise: float = 0.15, seed: int = 0) -> Map:
    """Mean of dy/dx over noisy copies of x, summed over channels, by captum's `NoiseTunnel`.

    noise is the standard deviation, as a share of the range of x.

    Source: Smilkov et al., SmoothGrad: removing noise by adding noise, arXiv:1706.03825.
    """
    tunnel, explainer = _captum("NoiseTunnel"), _captum("Saliency")
    forward, inputs, others = _forward(problem)
    spread = tuple(noise * float(x.max() - x.min()) for x in inputs)
    devices = [inputs[0].device] if inputs[0].is_cuda else []
    with torch.random.fork_rng(devices):  # the caller's generator state stays as it is
        torch.manual_seed(seed)
        found = tunnel(explainer(forward)).attribute(
            inputs,
            nt_type="smoothgrad",
            nt_samples=samples,
            nt_samples_batch_size=1,
            stdevs=spread,
            additional_forward_args=others,
            abs=False,
        )
    return _mapped(problem, dict(zip(problem.main, found)))


@method(takes_gradient=False)
def random(problem: Problem, seed: int = 0) -> Map:
    """Normal noise on the tokens: the baseline that every method should beat."""
    total = problem.anatomy.count + problem.anatomy.prefix
    noise = torch.randn(problem.batch, total, generator=torch.Generator().manual_seed(seed))
    return Map(tokens=noise.to(next(e for e in problem.entries if isinstance(e, Tensor)).device))


def _mapped(problem: Problem, parts: Mapping[str, Tensor], over: Callable[[Tensor, int], Tensor] = torch.sum) -> Map:
    """A map of the main inputs, each reduced over its channels by `over`."""
    if problem.anatomy.size is not None:
        return Map(pixels=over(parts[problem.main[0]], 1))
    joined = [over(parts[name], -1) if parts[name].dim() > 2 else parts[name] for name in problem.main]
    if joined[0].dim() != 2:
        shape = tuple(parts[problem.main[0]].shape)
        raise InputError(f"input {problem.main[0]!r} of shape {shape} is neither a picture nor a sequence of tokens.")
    return Map(tokens=torch.stack(joined).sum(0))


def on_tokens(problem: Problem, map: Map) -> Tensor:
    """A map of the input as a map of tokens: a patch gets the sum of its pixels, prefix tokens get 0."""
    if map.tokens is not None:
        return map.tokens
    assert map.pixels is not None and problem.anatomy.count
    assert problem.anatomy.grid is not None
    patches = resample(map.pixels, problem.anatomy.grid).flatten(1)
    return torch.nn.functional.pad(patches, (problem.anatomy.prefix, 0))


def _largest(values: Tensor, axis: int) -> Tensor:
    return values.amax(axis)


def _captum(name: str) -> Any:
    try:
        import captum.attr
    except ImportError as error:
        raise InputError(f'this method is captum\'s ({error}): pip install "fxgrad[captum]"') from error
    return getattr(captum.attr, name)


def _forward(problem: Problem) -> tuple[Callable[..., Tensor], tuple[Tensor, ...], tuple[Any, ...]]:
    """For captum: (the target as a function, the main inputs, the other arguments that vary with the batch)."""
    target = problem.target  # of whole batches: captum takes one step at a time, with all examples
    names = list(problem.inputs)
    places = [names.index(name) for name in problem.main]
    rest = [i for i in range(len(names)) if i not in places]

    def forward(*given: Any) -> Tensor:
        entries = dict(zip([*places, *rest], given))
        entries |= {i: entries[i].to(problem.entries[i].dtype) for i in places}  # captum's noise is float32
        outputs = problem.converted.run([entries[i] for i in range(len(names))])
        return target.score(outputs)

    inputs = tuple(problem.entries[i].detach() for i in places)
    return forward, inputs, tuple(problem.entries[i] for i in rest)
