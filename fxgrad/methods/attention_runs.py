"""Methods that use attention weights A of every block, and run the model more than once.

dy/dA is the partial derivative g v^T, as in `fxgrad.methods.attentions`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.methods.attentions import read_by, rolled, sensitivity_of, weights_of
from fxgrad.methods.definition import Map, method
from fxgrad.methods.ends import ends
from fxgrad.methods.options import refuse_few
from fxgrad.methods.parts import Attention
from fxgrad.methods.problem import Problem
from fxgrad.run.recording import Contributions


@method(passes="own")
def biattn(problem: Problem, n_steps: int = 20) -> Map:
    """F * P, the class token's row: what the last block's attention hands on, times what was gathered until there.

    P is the product over blocks of I + sum_heads w A, later ones on the left, with w the mean of |A^T dy/dA| as a share
    of all heads'. F = mean_heads relu(mean of dy/dA of the last block, over the inputs 0, x / (n - 1) to x), with
    n = n_steps. What a mask closes does not count in w. It is the paper's head-wise form.

    Source: Chen et al., Beyond Intuition, TMLR 2023, openreview.net/forum?id=rm0zIzlhcX, sections 3.2 and 3.3.
    """
    refuse_few("n_steps", n_steps)
    blocks = problem.anatomy.of_attentions("biattn")
    problem.run(read_by(blocks))  # of all blocks at once
    perceived = rolled([problem.once(_perceived, own) for own in blocks]) * 2 ** len(blocks)
    return Map(tokens=problem.row_of(_feedback(problem, blocks[-1], n_steps) * perceived))


@method(passes="own")
def legrad(problem: Problem) -> Map:
    """Sum over blocks l of mean_heads,rows relu(ds/dA_l), s the target read from block l's output.

    That output stands in the place of the last block's. What a mask closes does not count. Each block takes a forward
    pass of its own.

    Source: Bousselham et al., LeGrad, ICCV 2025, arXiv:2404.03214, section 3.
    """
    problem.anatomy.of_attentions("legrad")
    blocks, last = [b for b in problem.anatomy.blocks if b.attentions], problem.anatomy.blocks[-1].exit
    names = {last} | {block.exit for block in blocks} | read_by([block.attentions for block in blocks])
    recording = problem.runs.recorded(names)
    values = recording.values(names)
    slopes = []
    for block in blocks:
        if values[block.exit].shape != values[last].shape:
            raise InputError(
                f"legrad reads the target from every block's output: {block.path} has {tuple(values[block.exit].shape)}"
                f", and the last one {tuple(values[last].shape)}. Use genatt."
            )
        g = problem.at({}, {last: values[block.exit]}).run([last]).cotangents[last]
        cotangents = recording.between(block.exit, g, read_by([block.attentions]))
        seen = weights_of(block.attentions, problem, values) != 0
        slopes.append((sensitivity_of(block.attentions, problem, values, cotangents).relu() * seen).mean(1))
    return Map(tokens=problem.mean(torch.stack(slopes).sum(0))[:, : problem.anatomy.prefix + problem.anatomy.count])


@method(passes="own")
def transatt(problem: Problem) -> Map:
    """Product over blocks of (I + mean_heads relu(R * dy/dA)) / 2, later ones on the left, the class token's row.

    R = A * dy/dA is the relevance of A by the policy's g, and the other factor is by the plain gradient's. The factor
    1/2 changes the scale only.

    Source: Chefer, Gur, Wolf, Transformer Interpretability Beyond Attention Visualization, CVPR 2021, arXiv:2012.09838,
    eqs. 13 and 14.
    """
    blocks = problem.anatomy.of_attentions("transatt")
    plain = replace(problem, converted=problem.converted.under("gradient"), runs=None)  # type: ignore[arg-type]
    found, slopes = problem.run(read_by(blocks)), plain.run(read_by(blocks))
    matrices = []
    for own in blocks:
        relevance = weights_of(own, problem, found.values) * sensitivity_of(own, problem, *_both(found))
        matrices.append((relevance * sensitivity_of(own, problem, *_both(slopes))).relu().mean(1))
    return Map(tokens=problem.row_of(rolled(matrices)))


def _perceived(problem: Problem, attentions: tuple[Attention, ...]) -> Tensor:
    """sum_heads w A of a block, (batch, tokens, tokens)."""
    found = problem.run(read_by([attentions]))
    a, slopes = weights_of(attentions, problem, found.values), sensitivity_of(attentions, problem, *_both(found))
    shares = (a.mT @ (slopes * (a != 0))).abs().mean((2, 3))
    shares = shares / shares.sum(1, keepdim=True).clamp(min=torch.finfo(a.dtype).tiny)
    return (shares[:, :, None, None] * a).sum(1)


def _feedback(problem: Problem, attentions: tuple[Attention, ...], n_steps: int) -> Tensor:
    """mean_heads relu(mean of dy/dA along the line from 0 to the inputs) of a block, (batch, tokens, tokens)."""
    chosen, names = ends(problem, "biattn", "input"), read_by([attentions])
    total = torch.zeros(())
    for step in range(n_steps):
        share = step / max(n_steps - 1, 1)
        found = chosen.moved({name: share * x for name, x in chosen.values.items()}).run(names)
        total = total + sensitivity_of(attentions, problem, *_both(found)) / n_steps
    return total.relu().mean(1)


def _both(found: Contributions) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run's values and cotangents."""
    return found.values, found.cotangents
