"""The linear map that a converted model is at one example, as an operator.

A balanced backward is linear in the cotangent that it starts from, and it adds up: f(x) = W x + b, exactly, where the
rows of W are the balanced gradients of the outputs, and b is what constants contribute. W is written down only where it
is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.flows.passes import Passes
from fxgrad.flows.singular import SVD, singular
from fxgrad.methods.layers import output_of
from fxgrad.methods.problem import size_of_batch
from fxgrad.methods.search import Search
from fxgrad.module.converted import ConvertedModule
from fxgrad.run.runs import Runs


def linear_map(
    converted: ConvertedModule,
    args: tuple[Any, ...] | Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    outputs: Callable[[Any], Tensor] | None = None,
    wrt: str | None = None,
) -> LinearMap:
    """The linear map from a model's inputs, or from a place in it, to its outputs, at one example.

    Args:
        converted: what `fxgrad.convert` returned. Under "gradient", W is the Jacobian, and nothing adds up.
        args, kwargs: inputs, as for calling it: one example.
        outputs: a function of the model's outputs that returns a tensor (k,), linear in them, such as
            `lambda output: output.logits[0, -1]`. By default all elements of the first output of floating dtype.
        wrt: module path of the place that the map starts from, as for `layer` of `fxgrad.attribute`, or a node's name.
            What gets to the outputs without passing through it is in b. By default all attributed inputs; of token
            ids, their embeddings.

    Returns:
        The map: W as an operator of shape (outputs, inputs), and b.

    Raises:
        InputError: several examples, no such place, or outputs that are no linear function.
        NotBalanceableError, NoRuleError: an output that cannot be balanced, once it is asked for.

    Example:
        >>> import fxgrad
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 2)).eval().double()
        >>> x = torch.randn(1, 3).double()
        >>> W = linear_map(fxgrad.convert(model, (x,)), (x,))
        >>> W.shape, torch.allclose(W @ x[0] + W.b, model(x)[0]), W.residual < 1e-12
        ((2, 3), True, True)
        >>> {name: tuple(bias.shape) for name, bias in W.biases.items()}
        {'0.bias': (2,), '2.bias': (2,)}
        >>> linear_map(fxgrad.convert(model, (x,)), (x,), outputs=lambda y: y[0, :1] - y[0, 1:], wrt="1").shape
        (1, 4)

    Source: LibraGrad, arXiv:2411.16760, for the gradient; Golden, Large Language Models are Locally Linear Mappings,
        arXiv:2505.24293, for the map that a language model with held gates is, and for what its singular vectors say.
    """
    with torch.no_grad():
        entries = converted.entries(args, kwargs)
    search = Search(converted.classified, None, entries)
    anatomy = search.anatomy()
    batch = size_of_batch(converted.classified, entries, anatomy) if anatomy.inputs else 1
    if batch != 1:
        raise InputError(f"a linear map is that of one example, and the inputs have {batch}. Pass them one by one.")
    if wrt is None:
        return LinearMap(Passes(converted, entries, outputs, {}))
    decisions, nodes = converted.classified.decisions, {n.name: n for n in converted.classified.captured.graph.nodes}
    node = wrt if wrt in decisions else output_of(wrt, nodes, decisions, (search.name, search.source))
    value = Runs(converted, entries).values([node])[node]
    if not isinstance(value, Tensor) or not value.is_floating_point():
        what = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"the value at {wrt!r} is no tensor of floating dtype, but {what}. Pick another place.")
    return LinearMap(Passes(converted, entries, outputs, {node: value}))


class LinearMap:
    """f(x) = W x + b at one example: W as an operator, and b by name. `fxgrad.linear_map` makes it.

    Args:
        passes: of one recorded run.

    Attributes:
        value: f(x), (outputs,).
        x: what W is applied to: all inputs, flattened, one behind the other, (inputs,).

    Example:
        >>> import fxgrad
        >>> x = torch.randn(1, 4)
        >>> W = linear_map(fxgrad.convert(torch.nn.Linear(4, 3).eval(), (x,)), (x,))
        >>> (W @ torch.ones(4)).shape, (W.T @ torch.ones(3, 7)).shape, W.row(2).shape, W.column(0).shape
        (torch.Size([3]), torch.Size([4, 7]), torch.Size([4]), torch.Size([3]))
        >>> W.parts(W.row(2))["input"].shape, W.svd(2).S.shape
        (torch.Size([1, 4]), torch.Size([2]))
    """

    def __init__(self, passes: Passes) -> None:
        self._passes, self.value, self.x = passes, passes.chosen.value, passes.x

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return len(self.value), len(self.x)

    @property
    def T(self) -> Transposed:
        """The transposed map: W.T @ g is the balanced gradient of <g, f(x)>."""
        return Transposed(self)

    def __matmul__(self, x: Tensor) -> Tensor:
        """W x: (inputs,) to (outputs,), or (inputs, m) to (outputs, m).

        Raises:
            InputError: x has another shape.
        """
        return _applied(self._passes.pushed, x, self.shape[1])

    def row(self, index: int) -> Tensor:
        """What one output reads of the inputs, (inputs,), by one backward pass."""
        return self.rows([index])[0]

    def rows(self, indices: Sequence[int]) -> Tensor:
        """Several rows, (count, inputs), by as many backward passes, batched as memory allows.

        Raises:
            InputError: there is no such output.
        """
        return self._passes.rows(_within(indices, len(self.value), "output"))

    def column(self, index: int) -> Tensor:
        """What one element of the inputs gives to each output, by its size, (outputs,).

        Raises:
            InputError: there is no such element.
        """
        unit = torch.zeros_like(self.x)
        unit[_within([index], len(unit), "element of the input")] = 1
        return self._passes.pushed(unit[None])[0]

    def dense(self) -> Tensor:
        """The matrix, (outputs, inputs), by one backward pass for each output. The map keeps it."""
        return self._passes.matrix

    def parts(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector of the inputs' elements, (..., inputs), by the names of the inputs: (..., *the input's shape).

        Of a map from a place, the name is that of the place's node.
        """
        shapes = {name: value.shape for name, value in self._passes.starts.items()}
        cut = torch.split(vector, [math.prod(shape) for shape in shapes.values()], -1)
        return {name: part.reshape(*vector.shape[:-1], *shape) for (name, shape), part in zip(shapes.items(), cut)}

    @cached_property
    def biases(self) -> dict[str, Tensor]:
        """What each constant contributes to each output, (outputs,), by the name of the parameter, else of its node.

        Of a map from a place, also what goes past the place, by the name of the input. It takes one backward pass for
        each output.
        """
        return self._passes.biases()

    @property
    def b(self) -> Tensor:
        """The sum of the biases, (outputs,)."""
        return sum(self.biases.values(), torch.zeros_like(self.value))

    @property
    def residual(self) -> float:
        """|f(x) - W x - b| / |f(x)|. W x and b are computed each on its own, and neither from f(x)."""
        error, size = (torch.linalg.vector_norm(v.double()) for v in (self.value - self @ self.x - self.b, self.value))
        return float(error / size.clamp(min=torch.finfo(torch.float64).tiny))

    def svd(self, rank: int, *, dense: bool | None = None) -> SVD:
        """The singular vectors with the largest singular values: what the model reads most, and what it says of it.

        Args:
            rank: how many.
            dense: True takes them from the matrix; False finds them by products with W and W.T (ARPACK, by SciPy), as
                many as it needs. By default the matrix is made where the outputs are few.

        Returns:
            (U, S, Vh) as `torch.linalg.svd` gives them, but these only: (outputs, rank), (rank,), (rank, inputs), in
            float64. The largest element of each column of U is positive.

        Raises:
            InputError: there are not so many, or SciPy is needed and not installed.
        """
        return singular(self, rank, self.x, dense)

    def __repr__(self) -> str:
        return f"LinearMap of shape {self.shape}, from {', '.join(self._passes.starts)}"


class Transposed:
    """The transpose of a linear map.

    Args:
        map: the map.

    Attributes:
        T: the map itself.
    """

    def __init__(self, map: LinearMap) -> None:
        self.T = map

    @property
    def shape(self) -> tuple[int, int]:
        """(inputs, outputs)."""
        return self.T.shape[1], self.T.shape[0]

    def __matmul__(self, g: Tensor) -> Tensor:
        """W' g: (outputs,) to (inputs,), or (outputs, m) to (inputs, m), by m backward passes.

        Raises:
            InputError: g has another shape.
        """
        return _applied(self.T._passes.pulled, g, self.shape[1])

    def dense(self) -> Tensor:
        """The matrix, (inputs, outputs)."""
        return self.T.dense().mT


def _applied(lines: Callable[[Tensor], Tensor], x: Tensor, size: int) -> Tensor:
    """A function of lines, for a vector or for the columns of a matrix."""
    if not isinstance(x, Tensor) or x.dim() not in (1, 2) or len(x) != size:
        given = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"the map takes ({size},) or ({size}, m), not {given}. Flatten it; .parts undoes that.")
    return lines(x[None])[0] if x.dim() == 1 else lines(x.mT).mT


def _within(indices: Sequence[int], size: int, what: str) -> Sequence[int]:
    """Indices, once they are checked."""
    if wrong := [i for i in indices if not -size <= i < size]:
        raise InputError(f"there is no {what} {wrong[0]}: the map has {size}.")
    return indices
