"""Methods of one layer: h is its value, g its cotangent; by default it is the input of the last block with one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.graph.sizes import sizes_of
from fxgrad.methods.definition import Map, method
from fxgrad.methods.parts import BLOCKS, TOKENS
from fxgrad.methods.placing import Layout, layout, per_token
from fxgrad.methods.problem import Problem
from fxgrad.run.recording import Contributions

Mean = Callable[[Tensor], Tensor]
"""(batch, tokens, channels) -> (batch, channels): the mean over the tokens that count."""
Score = Callable[[Tensor, Tensor, Mean], Tensor]
"""h and g, (batch, tokens, channels), of the tokens that are scored, and the mean -> (batch, tokens)."""
MEANS = ("tokens", "patches")
"""What a mean over tokens is over: all of them, or the patches only."""


@method(layered=True, reads=BLOCKS)
def gradcam(problem: Problem) -> Map:
    """relu(sum_c h * mean_t(g)), the mean over the patches; padding does not count.

    Source: Selvaraju et al., Grad-CAM, ICCV 2017, arXiv:1610.02391, eqs. 1 and 2.
    """
    return _cam(problem, "gradcam", lambda h, g, mean: (h * mean(g)[:, None]).sum(2).relu())


@method(layered=True, reads=BLOCKS)
def gradcam_plus(problem: Problem, mean: str = "tokens") -> Map:
    """sum_c h * mean_t(g): Grad-CAM without its ReLU, so that negative values stay.

    The mean is over all tokens, the class token included; mean="patches" leaves prefix tokens out.

    Source: Mehri et al., SkipPLUS, CVPR 2024 workshops; LibraGrad, arXiv:2411.16760.
    """
    return _cam(problem, "gradcam_plus", lambda h, g, mean: (h * mean(g)[:, None]).sum(2), mean)


@method(layered=True, reads=BLOCKS)
def xgradcam_plus(problem: Problem, mean: str = "tokens") -> Map:
    """sum_c h * w, w = sum_t(g * |h|) / sum_t |h|: each channel's mean gradient, weighted by |h|.

    The sums are over all tokens, the class token included; mean="patches" leaves prefix tokens out.

    Source: Fu et al., Axiom-based Grad-CAM, BMVC 2020, arXiv:2008.02312, for w; Mehri et al., SkipPLUS, CVPR 2024
    workshops, for |h| and no ReLU.
    """

    def score(h: Tensor, g: Tensor, mean: Mean) -> Tensor:
        weights = mean(g * h.abs()) / mean(h.abs()).clamp(min=torch.finfo(h.dtype).tiny)
        return (h * weights[:, None]).sum(2)

    return _cam(problem, "xgradcam_plus", score, mean)


@method(layered=True, reads=BLOCKS)
def gradcam_plusplus(problem: Problem) -> Map:
    """relu(sum_c h * sum_t(a * relu(g))), a = g^2 / (2 g^2 + g^3 sum_t h), 0 where g is; sums over the patches.

    The score is the exponential of the target, as in the paper; its value is only a factor, which is left out.

    Source: Chattopadhyay et al., Grad-CAM++, WACV 2018, arXiv:1710.11063, eqs. 5, 7 and 19.
    """

    def score(h: Tensor, g: Tensor, mean: Mean) -> Tensor:
        below = 2 * g**2 + g**3 * (mean(h) * problem.number(h))[:, None]
        a = torch.where((g != 0) & (below != 0), g**2 / below, 0)
        return (h * mean(a * g.relu())[:, None]).sum(2).relu() * problem.number(h)

    return _cam(problem, "gradcam_plusplus", score)


@method(layered=True, reads=BLOCKS)
def layercam(problem: Problem) -> Map:
    """relu(sum_c h * relu(g)): each element by its own slope.

    Source: Jiang et al., LayerCAM, IEEE Transactions on Image Processing 30, 2021, eqs. 6 to 8.
    """
    return _cam(problem, "layercam", lambda h, g, mean: (h * g.relu()).sum(2).relu())


@method(shares=True, layered=True, reads=BLOCKS)
def hirescam(problem: Problem) -> Map:
    """sum_c h * g of all tokens; complete with the contributions of constants after the layer, which are kept apart.

    Source: Draelos, Carin, Use HiResCAM instead of Grad-CAM, arXiv:2011.08891.
    """
    name = _layer(problem, "hirescam", complete=True)
    found = problem.run([name], sources=True)
    value, cotangent = _met(problem, found, name)
    if problem.layer is not None:
        _laid(problem, "hirescam", name, value)
    tokens, lost = per_token(value * cotangent, problem.nodes[name], problem.anatomy, problem.batch, problem.example)
    behind = problem.behind(name)
    return Map(tokens=tokens, apart=lost + problem.kept(found, behind), maps=problem.beside(found, behind))


def _layer(problem: Problem, method: str, complete: bool = False) -> str:
    if problem.layer is not None:
        return problem.layer_node("")
    found = problem.blocks(method, complete)
    return next((b.entry for b in reversed(found) if _lies(problem, b.entry)), found[-1].entry)


def _lies(problem: Problem, name: str) -> bool:
    """Whether a value has the tokens of the map, as far as its shape tells."""
    anatomy, rank = problem.anatomy, len(sizes_of(problem.nodes[name]))
    tokens = any(atom.origin == TOKENS for axis in anatomy.places.get(name, ()) for atom in axis)
    return tokens or (anatomy.grid is not None and rank == len(anatomy.grid) + 2)


def _met(problem: Problem, found: Contributions, name: str) -> tuple[Tensor, Tensor]:
    """A layer's value and cotangent."""
    value, cotangent = found.values[name], found.cotangents[name]
    if not isinstance(value, Tensor) or cotangent is None:
        raise InputError(
            f"no cotangent reaches {problem.layer or name!r} under {problem.converted.classified.table.name!r}: what "
            "it computes is only ever held. Pick another layer."
        )
    return value, cotangent


def _cam(problem: Problem, method: str, score: Score, mean: str = "patches") -> Map:
    """The map of a score of the layer's tokens; prefix tokens have one if the mean is over them, too."""
    if mean not in MEANS:
        raise InputError(f"mean is {' or '.join(map(repr, MEANS))}, not {mean!r}: what {method} takes it over.")
    name = _layer(problem, method)
    value, cotangent = _met(problem, problem.run([name]), name)
    where = _laid(problem, method, name, value)
    h, g = where.rows(value), where.rows(cotangent)
    patches = slice(where.ahead, where.ahead + problem.anatomy.count)
    inside = slice(None) if where.map or mean == "tokens" else patches
    scores = torch.zeros_like(h[:, :, 0])
    scores[:, inside] = score(h[:, inside], g[:, inside], problem.mean)
    if not where.map and problem.counted is not None and problem.counted.shape == scores.shape:
        scores = scores * problem.counted  # padding may have a value, but the target does not depend on it
    return Map(tokens=where.put(scores, problem.anatomy))


def _laid(problem: Problem, method: str, name: str, value: Tensor) -> Layout:
    """How the tokens lie in a layer's value."""
    where = layout(value, problem.nodes[name], problem.anatomy, problem.batch)
    if where is None:
        raise InputError(
            f"{method} looks at a layer's tokens or map of features, and {problem.layer or name!r} of shape "
            f"{tuple(value.shape)} has no axis of tokens. Pick another layer."
        )
    return where
