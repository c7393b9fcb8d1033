"""Pairs of parts: what each token or patch of one input has in common with each of another, as two models see them.

Two towers give the embeddings u and v, and their likeness is u . v. A balanced backward makes each embedding a sum over
the parts of its input, u = U_1 + ... + U_n + b, so that u . v is the sum of all products of a part with a part, and of
those with the biases. Nothing is left over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Union

import torch
from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.methods.entry import attribute
from fxgrad.methods.options import refuse_few
from fxgrad.methods.parts import Grid
from fxgrad.methods.targets import Target
from fxgrad.module.converted import ConvertedModule

Output = Union[Callable[[Any], Tensor], None]
"""From a model's outputs to the embeddings, (batch, width)."""
Arguments = Union[tuple[Any, ...], Tensor, Mapping[str, Any]]
"""A model's inputs: positional ones, or by name."""
TOP = 40
"""How many pairs are drawn."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """What the parts of two inputs have in common; see `fxgrad.pairs`.

    Of one pair of inputs, the tensors are as given here; of several, a batch's axis comes first.

    Attributes:
        matrix: the share of each part of the left with each of the right, (n, m).
        left: the share of each part of the left with the biases of the right, (n,).
        right: the share of the biases of the left with each part of the right, (m,).
        both: the share of the biases with each other, ().
        total: the score, (), computed from the embeddings alone.
        left_grid, right_grid: (rows, columns) of a picture's patches, whose parts they are, row by row; None for text.
    """

    matrix: Tensor
    left: Tensor
    right: Tensor
    both: Tensor
    total: Tensor
    left_grid: Grid | None
    right_grid: Grid | None

    @property
    def biases(self) -> Tensor:
        """What biases have a part in: left, right and both, added up. With the matrix, it adds up to the total."""
        return self.left.sum(-1) + self.right.sum(-1) + self.both

    @property
    def completeness_error(self) -> float:
        """The largest |total - matrix - biases| of the pairs, relative to the total, or to 1 where that is less."""
        error = (self.total - self.matrix.sum((-2, -1)) - self.biases).abs() / self.total.abs().clamp(min=1)
        return float(error.max())

    def plot(self, path: str | Path | None = None, *, left: Any = None, right: Any = None, top: int = TOP) -> Any:
        """Draw both sides and the strongest pairs as lines: red for the score, blue against it.

        A word, or a patch, has the colour of its share with all parts of the other side.

        Args:
            path: of a .png, .svg or .pdf; None writes none.
            left, right: what the model saw there: of patches the picture, a PIL image, or (C, H, W) in [0, 1]; of a
                text its tokens as words. By default patches are drawn alone, and words are numbers.
            top: how many pairs to draw, the strongest.

        Returns:
            The figure of matplotlib.

        Raises:
            InputError: pairs of several inputs, not as many words as tokens, a picture of another form, matplotlib is
                not installed, or the file cannot be written.

        Example:
            >>> three, two, one = torch.zeros(3), torch.zeros(2), torch.tensor(1.0)
            >>> found = Pairs(torch.tensor([[0.5, 0.0], [0.0, -0.5], [1.0, 0.0]]), three, two, one * 0, one, None, None)
            >>> figure = found.plot(left=["the", "green", "nine"], right=["a", "digit"], top=2)
            >>> len(figure.axes[0].collections[0].get_segments())
            2
        """
        from fxgrad.flows.lines import Side, lines

        refuse_few("top", top)
        if self.matrix.dim() != 2:
            raise InputError(
                f"these are {len(self.matrix)} pairs of inputs, and one is drawn. Call fxgrad.pairs with one example "
                "on each side."
            )
        values = self.matrix.detach().double().cpu().numpy()
        sides = Side(values.sum(1), self.left_grid, left), Side(values.sum(0), self.right_grid, right)
        score = f"score {float(self.total):.4g}: pairs {values.sum():.4g}, biases {float(self.biases):.4g}"
        shown = f"the {min(top, values.size)} strongest of {values.size} pairs"
        return lines(values, sides, f"{score}; {shown}", top, path)


@dataclass(frozen=True, eq=False)
class _Tower:
    """One side: (batch, n, width) of the parts, (batch, width) of the biases, and the embeddings, (batch, width)."""

    parts: Tensor
    rest: Tensor
    embedding: Tensor
    grid: Grid | None


def pairs(
    left: ConvertedModule,
    left_args: Arguments,
    right: ConvertedModule,
    right_args: Arguments,
    *,
    left_output: Output = None,
    right_output: Output = None,
    left_grid: Grid | None = None,
    right_grid: Grid | None = None,
    normalize: bool = True,
) -> Pairs:
    """What each part of one input and each part of another give to the likeness of their embeddings.

    Args:
        left, right: what `fxgrad.convert` returned, of the two towers; one and the same for two inputs of one model.
        left_args, right_args: their inputs, a tuple, a tensor, or a dict by name; as many examples on both sides, each
            with its own on the other.
        left_output, right_output: from the model's outputs to its embeddings, (batch, width), linear in the outputs. By
            default the output itself.
        left_grid, right_grid: (rows, columns) of the parts of a picture. By default the model's patches.
        normalize: whether the score is the cosine, lengths held; else the product u . v.

    Returns:
        The pairs. Parts are the tokens of a text, and patches of a picture. It takes a backward pass for each of the
        embeddings' elements, on each side.

    Raises:
        InputError: embeddings of other shapes; other numbers of examples; a picture without patches, and no grid.

    Warns:
        IncompleteWarning: as for `fxgrad.attribute`.

    Example:
        >>> import fxgrad
        >>> words = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Flatten(), torch.nn.Linear(12, 5)).eval()
        >>> ids, other = torch.tensor([[1, 5, 2]]), torch.tensor([[5, 2, 7]])
        >>> libra = fxgrad.convert(words, (ids,))
        >>> found = pairs(libra, ids, libra, other)
        >>> found.matrix.shape, found.completeness_error < 1e-5
        (torch.Size([3, 3]), True)
        >>> wanted = torch.nn.functional.cosine_similarity(words(ids), words(other))[0]
        >>> torch.allclose(found.total, wanted), torch.allclose(found.matrix.sum() + found.biases, wanted, atol=1e-6)
        (True, True)

    Source: Eberle et al., Building and Interpreting Deep Similarity Models (BiLRP), arXiv:2003.05256, for the question;
        LibraGrad, arXiv:2411.16760, for the gradient.
    """
    one = _tower(left, left_args, left_output, left_grid, "left")
    other = _tower(right, right_args, right_output, right_grid, "right")
    u, v = one.embedding, other.embedding
    if u.shape != v.shape:
        raise InputError(
            f"the left embeddings are {tuple(u.shape)}, the right ones {tuple(v.shape)}: (batch, width) must be equal. "
            "Pass as many examples on both sides, and left_output and right_output."
        )
    scale = u.norm(dim=1) * v.norm(dim=1) if normalize else u.new_ones(len(u))

    def of(equation: str, a: Tensor, b: Tensor) -> Tensor:
        found = torch.einsum(equation, a, b)
        found = found / scale.reshape(-1, *[1] * (found.dim() - 1))
        return found[0] if len(u) == 1 else found

    return Pairs(
        matrix=of("bnd,bmd->bnm", one.parts, other.parts),
        left=of("bnd,bd->bn", one.parts, other.rest),
        right=of("bd,bmd->bm", one.rest, other.parts),
        both=of("bd,bd->b", one.rest, other.rest),
        total=of("bd,bd->b", u, v),
        left_grid=one.grid,
        right_grid=other.grid,
    )


def _tower(converted: ConvertedModule, inputs: Arguments, output: Output, grid: Grid | None, side: str) -> _Tower:
    """A model's embeddings as sums over the parts of its inputs."""
    args, kwargs = ((), inputs) if isinstance(inputs, Mapping) else (inputs, None)
    embeddings = output or _itself
    with torch.no_grad():
        whole = embeddings(converted.run(converted.entries(args, kwargs)))
    if not isinstance(whole, Tensor) or whole.dim() != 2:
        given = tuple(whole.shape) if isinstance(whole, Tensor) else type(whole).__name__
        raise InputError(
            f"the {side} embeddings are {given}, and must be (batch, width). Pass {side}_output, a function of the "
            "model's outputs, such as lambda output: output.pooler_output."
        )
    targets: list[Target] = [partial(_element, embeddings, at) for at in range(whole.shape[1])]
    found = attribute(converted, args, kwargs, target=targets, grid=grid)
    first, sizes = found[0], found[0].map.shape[1:]
    if first.of_pixels and first.anatomy.grid is None and len(sizes) > 1:
        raise InputError(
            f"the {side} model has no grid of patches, and its input is {' x '.join(map(str, sizes))}: pass "
            f"{side}_grid=(rows, columns), how to divide that."
        )
    parts = torch.stack([one.tokens for one in found], -1)
    total = torch.stack([one.total for one in found], -1)  # type: ignore[misc]
    embedding = torch.stack([one.output for one in found], -1)
    return _Tower(parts, total - parts.sum(1), embedding, first.anatomy.grid if first.of_pixels else None)


def _element(embeddings: Callable[[Any], Tensor], at: int, outputs: Any) -> Tensor:
    """One element of each embedding, (batch,)."""
    return embeddings(outputs)[:, at]


def _itself(outputs: Any) -> Any:
    return outputs
