"""Methods that use attention weights A, (batch, heads, tokens, tokens), of every block.

If attention is one fused op, A is computed again from q, k, mask and scale; if it is written out, A is the factor of
the values. As in the papers, dy/dA is the partial derivative with respect to the weights: for z = A v with cotangent g,
dy/dA = g v^T. The formula is the same under every policy, even one that holds A; the policy changes g only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxgrad.errors import InputError
from fxgrad.graph.nodes import arguments_of
from fxgrad.methods.definition import Map, method
from fxgrad.methods.parts import Attention, Block
from fxgrad.methods.placing import layout
from fxgrad.methods.problem import Problem
from fxgrad.ops.scores import attention_weights, shared
from fxgrad.run.recording import Contributions


@method(takes_gradient=False)
def raw_attention(problem: Problem) -> Map:
    """mean_heads A of the last block, the class token's row. Independent of the target.

    Source: Abnar, Zuidema, Quantifying Attention Flow in Transformers, ACL 2020, arXiv:2005.00928, section 2.
    """
    last = problem.anatomy.of_attentions("raw_attention")[-1]
    return Map(tokens=problem.row_of(problem.once(mean_weights, last)))


@method(takes_gradient=False)
def rollout(problem: Problem) -> Map:
    """Product over blocks of (I + mean_heads A) / 2, later ones on the left, the class token's row.

    Source: Abnar, Zuidema, Quantifying Attention Flow in Transformers, ACL 2020, arXiv:2005.00928, section 3.
    """
    blocks = problem.anatomy.of_attentions("rollout")
    problem.values(read_by(blocks))  # of all blocks at once
    return Map(tokens=problem.row_of(rolled([problem.once(mean_weights, block) for block in blocks])))


def genatt(problem: Problem) -> Map:
    """Product over blocks of (I + mean_heads relu(A * dy/dA)) / 2, later ones on the left, the class token's row.

    The paper's rule is R + M R = (I + M) R; the factor 1/2 changes the scale only.

    Source: Chefer, Gur, Wolf, Generic Attention-model Explainability, ICCV 2021, arXiv:2103.15679, eqs. 5 and 6.
    """
    return Map(tokens=problem.row_of(rolled(_relevant(problem, "genatt"))))


def gradsam(problem: Problem) -> Map:
    """Sum over blocks of mean_heads relu(A * dy/dA), the class token's row.

    The paper takes the mean over all rows; this does so for models without a class token.

    Source: Barkan et al., Grad-SAM, CIKM 2021, arXiv:2204.11073.
    """
    return Map(tokens=problem.row_of(torch.stack(_relevant(problem, "gradsam")).sum(0)))


def attcat(problem: Problem) -> Map:
    """Sum over blocks of the attention to a token (mean over heads and rows) times its sum_c h * g after the block.

    h is the next block's input; for the last block, its output. Rows of tokens that the target does not depend on, such
    as padding, do not count.

    Source: Qiang et al., AttCAT, NeurIPS 2022, section 3.
    """
    problem.anatomy.of_attentions("attcat")
    reached = problem.blocks("attcat")
    if not any(block.attentions for block in reached):
        reached = list(problem.anatomy.blocks)
    blocks = [block for block in reached if block.attentions]
    entries = {block.path: block.entry for block in reached}
    following = dict(zip(entries, [*list(entries.values())[1:], reached[-1].exit]))
    found = problem.run(read_by([b.attentions for b in blocks]) | {following[b.path] for b in blocks})
    terms = []
    for block in blocks:
        h, g = found.values[following[block.path]], found.cotangents[following[block.path]]
        received = problem.mean(problem.once(mean_weights, block.attentions))
        if g is None or h.dim() != 3 or h.shape[:2] != received.shape:
            raise InputError(
                f"attcat needs (batch, tokens, channels) with a cotangent behind {block.path}; {following[block.path]} "
                f"gives {tuple(h.shape)}{'' if g is not None else ', held'}. Pass other blocks=[...]."
            )
        terms.append(received * (h * g).sum(2))
    return Map(tokens=_cut(problem, torch.stack(terms).sum(0)))


def tokentm(problem: Problem) -> Map:
    """Attention and transformation of tokens, accumulated over blocks, the class token's row.

    E are the tokens before a transformation, F those after it. A token's weight is the change of its length, times how
    well its direction is kept: w = |F| / |E| * exp(cos(E, F)) / mean_t exp(cos(E, F)). Start with C = diag(|E_0|). Each
    attention updates C to C + M diag(w) C, with M = mean_heads relu(A * dy/dA) and F the concatenated values of all
    heads; each perceptron updates C to C + diag(w) C.

    Source: Wu et al., Token Transformation Matters, CVPR 2024, arXiv:2403.14552, section 3.
    """
    attentions = problem.anatomy.of_attentions("tokentm")
    blocks = [block for block in problem.anatomy.blocks if block.attentions]
    reads = {name for block in blocks for name in (block.entry, *_branch(block))}
    found = problem.run(reads | read_by(attentions) | {a.value for own in attentions for a in own})
    relevant = iter(_relevant(problem, "tokentm"))
    c: Tensor | None = None
    for block in blocks:
        h = _rows(problem, found, block.entry)
        if c is None:
            c = torch.diag_embed(h.norm(dim=2))
        values = [found.values[a.value] for a in block.attentions]
        side_by_side = torch.cat([by_head(v, h.shape[0]).transpose(1, 2).flatten(2) for v in values], 2)
        stream, branch = (_rows(problem, found, name) for name in _branch(block))
        c = c + next(relevant) @ (_transformed(problem, block, h, side_by_side)[:, :, None] * c)
        c = c + _transformed(problem, block, stream, branch)[:, :, None] * c
    assert c is not None
    return Map(tokens=problem.row_of(c))


def weights(attention: Attention, problem: Problem, values: Mapping[str, Any]) -> Tensor:
    """The weights A of one attention, (batch, heads, rows, columns).

    Source: Vaswani et al., Attention Is All You Need, arXiv:1706.03762, eq. 1.
    """
    if attention.weights is not None:
        return by_head(values[attention.weights], problem.batch)
    given = {
        name: values[argument.name] if isinstance(argument, fx.Node) else argument
        for name, argument in arguments_of(problem.nodes[attention.node]).items()
        if name not in ("value", "dropout_p")
    }
    return by_head(attention_weights(**given), problem.batch)


def mean_weights(problem: Problem, attentions: Sequence[Attention]) -> Tensor:
    """mean_heads A of a block, (batch, tokens, tokens); the heads of several attentions are averaged together."""
    return weights_of(attentions, problem, problem.values(read_by([attentions]))).mean(1)


def _relevant(problem: Problem, method: str) -> list[Tensor]:
    """mean_heads relu(A * dy/dA) of every block, (batch, tokens, tokens)."""
    blocks = problem.anatomy.of_attentions(method)
    problem.run(read_by(blocks))  # of all blocks at once
    return [problem.once(_relevant_weights, block) for block in blocks]


def _relevant_weights(problem: Problem, attentions: Sequence[Attention]) -> Tensor:
    """mean_heads relu(A * dy/dA) of a block, (batch, tokens, tokens)."""
    found = problem.run(read_by([attentions]))
    own = weights_of(attentions, problem, found.values)
    return (own * sensitivity_of(attentions, problem, found.values, found.cotangents)).relu().mean(1)


def sensitivity(
    attention: Attention, problem: Problem, values: Mapping[str, Any], cotangents: Mapping[str, Any]
) -> Tensor:
    """dy/dA of one attention, (batch, heads, rows, columns): g v^T; 0 where no cotangent arrives.

    Args:
        attention: of the problem's anatomy.
        problem: whose run it is.
        values, cotangents: of the nodes that `read_by` names.
    """
    g = cotangents[attention.node]
    if g is None:
        return torch.zeros_like(weights(attention, problem, values))
    v, g = (by_head(value, problem.batch) for value in (values[attention.value], g))
    return g @ shared(v, g.shape[1]).mT


def weights_of(attentions: Sequence[Attention], problem: Problem, values: Mapping[str, Any]) -> Tensor:
    """The weights A of a block's attentions, side by side as heads: (batch, heads, rows, columns)."""
    return torch.cat([weights(a, problem, values) for a in attentions], 1)


def sensitivity_of(
    attentions: Sequence[Attention], problem: Problem, values: Mapping[str, Any], cotangents: Mapping[str, Any]
) -> Tensor:
    """dy/dA of a block's attentions, side by side as heads: (batch, heads, rows, columns)."""
    return torch.cat([sensitivity(a, problem, values, cotangents) for a in attentions], 1)


def rolled(matrices: Sequence[Tensor]) -> Tensor:
    """The product of (I + M) / 2, later ones on the left."""
    eye = torch.eye(matrices[0].shape[-1]).to(matrices[0])
    product = eye.expand_as(matrices[0])
    for matrix in matrices:
        product = (eye + matrix) / 2 @ product
    return product


def read_by(blocks: Sequence[Sequence[Attention]]) -> set[str]:
    """Names of the nodes whose values or cotangents these attentions need."""
    return {name for block in blocks for a in block for name in (a.node, *a.reads)}


def _branch(block: Block) -> tuple[str, str]:
    """(stream, branch) of a block's second residual sum, that of the perceptron."""
    if len(block.residuals) != 2:
        raise InputError(
            f"tokentm needs blocks of an attention and a perceptron, each added to the stream; {block.path} has "
            f"{len(block.residuals)} such sums. Use genatt, which looks at attention only."
        )
    stream, branch, _ = block.residuals[1]
    return stream, branch


def _transformed(problem: Problem, block: Block, before: Tensor, after: Tensor) -> Tensor:
    """The transformation weights of tokens, (batch, tokens)."""
    if before.shape != after.shape:
        raise InputError(
            f"tokentm compares tokens with their values, of one width: in {block.path} they are {tuple(before.shape)} "
            f"and {tuple(after.shape)}. Use genatt, which looks at attention only."
        )
    direction = torch.nn.functional.cosine_similarity(before, after, dim=2).exp()
    length = after.norm(dim=2) / before.norm(dim=2).clamp(min=torch.finfo(before.dtype).tiny)
    weights: Tensor = length * direction / problem.mean(direction)[:, None]
    return weights


def _rows(problem: Problem, found: Contributions, name: str) -> Tensor:
    """A node's value as (batch, tokens, width), also where tokens are on its first axis."""
    value = found.values[name]
    where = layout(value, problem.nodes[name], problem.anatomy, problem.batch)
    if where is not None:
        return where.rows(value)
    if value.dim() != 3 or value.shape[0] != problem.batch:
        raise InputError(
            f"tokentm compares tokens with their values, and in {name!r} of shape {tuple(value.shape)} there are no "
            "tokens of each example. Use genatt, which looks at attention only."
        )
    tokens: Tensor = value
    return tokens


def by_head(value: Tensor, batch: int) -> Tensor:
    """The weights as (batch, heads, rows, columns), also if the heads are merged with the batch."""
    return value.reshape(batch, -1, *value.shape[-2:])


def _cut(problem: Problem, tokens: Tensor) -> Tensor:
    return tokens[:, : problem.anatomy.prefix + problem.anatomy.count]
