"""Methods that count the constants: what every bias contributes, at the token where it does."""

from __future__ import annotations

import torch

from fxgrad.errors import InputError
from fxgrad.methods.definition import method
from fxgrad.methods.inputs import on_tokens, products
from fxgrad.methods.placing import per_token
from fxgrad.methods.problem import Map, Problem


@method(shares=True)
def fullgrad(problem: Problem) -> Map:
    """sum_c x * dy/dx plus, at each token, every source's sum_c b * dy/db.

    Patches get their pixels' share. A source without an axis of tokens (the head's bias) goes to the class token where
    the model has one, and is kept apart elsewhere. No absolute values, no rescaling.

    Source: Srinivas, Fleuret, Full-Gradient Representation, NeurIPS 2019, arXiv:1905.00780, eq. 1.
    """
    found = problem.run(sources=True)
    everywhere = problem.behind()
    tokens, apart = problem.placed(found, everywhere)
    own = on_tokens(problem, products(problem, found))
    return Map(tokens=own + tokens, apart=apart + problem.beside(found, everywhere))


@method(shares=True)
def fullgrad_plus(problem: Problem) -> Map:
    """sum over blocks l of (sum_c h_l * g_l plus the sources from block l on), h_l the block's input.

    Each term adds up to the target's value by itself if the policy balances, so the whole to as many times that as
    there are blocks. A source from block l on is one of a node that the block's input does not depend on.

    Source: Mehri et al., SkipPLUS, CVPR 2024 workshops; LibraGrad, arXiv:2411.16760 (FullGrad+).
    """
    blocks = problem.anatomy.of_blocks("fullgrad_plus")
    found = problem.run([block.entry for block in blocks], sources=True)
    tokens, apart = [], []
    for block in blocks:
        cotangent = found.cotangents[block.entry]
        if cotangent is None:
            raise InputError(
                f"no cotangent reaches the input of {block.path}, so fullgrad_plus cannot count it. Pass blocks=[...], "
                "the module paths of others."
            )
        product = found.values[block.entry] * cotangent
        own, lost = per_token(product, problem.nodes[block.entry], problem.anatomy, problem.batch)
        behind = problem.behind(block.entry)
        sources, rest = problem.placed(found, behind)
        tokens.append(own + sources)
        apart.append(lost + rest + problem.beside(found, behind))
    return Map(tokens=torch.stack(tokens).sum(0), apart=torch.stack(apart).sum(0), copies=len(blocks))
