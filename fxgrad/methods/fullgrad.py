"""Methods that include the contributions of constants, at the token where they arise."""

from __future__ import annotations

import torch
from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.methods.definition import Map, method
from fxgrad.methods.inputs import on_tokens, products
from fxgrad.methods.parts import BLOCKS
from fxgrad.methods.placing import per_token
from fxgrad.methods.problem import Problem


@method(shares=True, reads=BLOCKS)
def fullgrad(problem: Problem) -> Map:
    """sum_c x * dy/dx plus, at each token, every source's sum_c b * dy/db.

    A patch gets the sum of its pixels. A source without an axis of tokens (the head's bias) goes to the class token; in
    models without one it is kept apart. No absolute values, no rescaling.

    Source: Srinivas, Fleuret, Full-Gradient Representation, NeurIPS 2019, arXiv:1905.00780, eq. 1.
    """
    found = problem.run(sources=True)
    everywhere = problem.behind()
    tokens, apart = problem.placed(found, everywhere)
    maps = products(problem, found)
    own = on_tokens(problem, problem.joint(maps), "fullgrad")
    return Map(tokens=own + tokens, apart=apart, maps=problem.beside(found, everywhere))


@method(shares=True, reads=BLOCKS)
def fullgrad_plus(problem: Problem) -> Map:
    """sum over blocks l of (sum_c h_l * g_l plus the sources from block l on), h_l the block's input.

    If the policy balances, each term alone adds up to the target's value, so the whole adds up to that times the number
    of blocks. Blocks that something passes by on its way to the target do not count. A source is "from block l on" if
    the block's input does not depend on its node.

    Source: Mehri et al., SkipPLUS, CVPR 2024 workshops; LibraGrad, arXiv:2411.16760 (FullGrad+).
    """
    blocks = problem.blocks("fullgrad_plus", complete=True)
    found = problem.run([block.entry for block in blocks], sources=True)
    tokens, apart = [], []
    maps: dict[str, Tensor] = {}
    for block in blocks:
        cotangent = found.cotangents[block.entry]
        if cotangent is None:
            raise InputError(
                f"no cotangent reaches the input of {block.path}, so fullgrad_plus cannot count it. Pass blocks=[...], "
                "the module paths of others."
            )
        product = found.values[block.entry] * cotangent
        own, lost = per_token(product, problem.nodes[block.entry], problem.anatomy, problem.batch, problem.example)
        behind = problem.behind(block.entry)
        sources, rest = problem.placed(found, behind)
        tokens.append(own + sources)
        apart.append(lost + rest)
        for name, map in problem.beside(found, behind).items():
            maps[name] = maps.get(name, torch.zeros_like(map)) + map
    return Map(tokens=torch.stack(tokens).sum(0), apart=torch.stack(apart).sum(0), copies=len(blocks), maps=maps)
