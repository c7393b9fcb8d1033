"""What a model returns: which tensor has the logits, how a function of the outputs is written, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from fxgrad.errors import FxgradError, InputError, one_line


def logits_of(outputs: Any, fits: Callable[[Tensor], bool] = lambda output: output.dim() > 0) -> Tensor:
    """The logits among a model's outputs: the one named logits, or the only tensor of floating dtype.

    Args:
        outputs: what the model returns.
        fits: whether an output has a row for each example, and so may be advised.

    Raises:
        InputError: there are several outputs, none of them named logits.
    """
    if isinstance(outputs, Tensor):
        return outputs
    named = outputs.get("logits") if isinstance(outputs, dict) else getattr(outputs, "logits", None)
    if isinstance(named, Tensor):
        return named
    found = [v for v in pytree.tree_leaves(outputs) if differentiable(v)]
    if len(found) == 1:
        only: Tensor = found[0]
        return only
    shapes = ", ".join(str(tuple(v.shape)) for v in found)
    rows = [v for v in found if fits(v)]
    advice = f", such as {as_function(rows[0], path_of(outputs, rows[0]))}" if rows else ""
    raise InputError(
        f"the model returns {len(found)} tensors ({shapes}), none of them called logits. Pass a function of the output "
        f"as the target{advice}."
    )


def instead(logits: Tensor, path: str, index: int = 0) -> str:
    """What to pass as the target where the output is not (batch, classes)."""
    token = "Token(position, id) for a language model, or " if logits.dim() == 3 else ""
    function = "a function of the output that returns one number per example"
    if not path:
        return token + function
    if logits.dim() < 4:
        return f"{token}{function}, such as {as_function(logits, path, index)}"
    return f"{function}; for class {index} wherever it is the likeliest: {as_function(logits, path, index)}"


def as_function(tensor: Tensor, path: str, index: int = 0) -> str:
    """A function that is a target for an output of this shape, as a user would write it.

    Example:
        >>> import torch
        >>> as_function(torch.zeros(2, 5), "output.scores", 3)
        'lambda output: output.scores[:, 3]'
    """
    if tensor.dim() < 4:
        return f"lambda output: {path}{('', '', f'[:, {index}]', f'[:, -1, {index}]')[tensor.dim()]}"
    rest = ", ".join(map(str, range(1, tensor.dim() - 1)))
    return f"lambda output: ({path}[:, {index}] * ({path}.argmax(1) == {index})).sum(({rest}))"


def path_of(outputs: Any, leaf: Tensor) -> str:
    """The expression for one of the outputs in a function of them."""
    try:
        leaves = pytree.tree_flatten_with_path(outputs)[0]
    except ValueError:  # a structure that names no keys
        return "output"
    found = next((path for path, value in leaves if value is leaf), None)
    return "output" if found is None else f"output{pytree.keystr(found)}"


def differentiable(value: Any) -> bool:
    """Whether an output can have a gradient.

    Example:
        >>> import torch
        >>> differentiable(torch.zeros(2)), differentiable(torch.zeros(2, dtype=torch.int64)), differentiable(None)
        (True, False, False)
    """
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def called(target: Callable[[Any], Any], outputs: Any) -> Any:
    """What a user's function of the outputs returns.

    Raises:
        InputError: it ends in an error.

    Example:
        >>> import torch
        >>> called(lambda logits: logits[:, 1], torch.tensor([[1.0, 5.0]]))
        tensor([5.])
    """
    try:
        return target(outputs)
    except FxgradError:
        raise
    except Exception as error:
        shapes = ", ".join(str(tuple(v.shape)) for v in pytree.tree_leaves(outputs) if isinstance(v, Tensor))
        raise InputError(
            f"the target function ({getattr(target, '__name__', 'a function of the outputs')}) ended in "
            f"{one_line(error).rstrip('.')}. It gets what the model returns for the whole batch, here "
            f"{type(outputs).__name__} with {shapes}."
        ) from error


def one_each(value: Any, batch: int) -> Tensor:
    """The result of the user's function, checked to have one real number per example, (batch,)."""
    if not isinstance(value, Tensor) or value.shape not in ((), (batch,)):
        given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"a function as the target returns one number per example, ({batch},); this one gave {given}.")
    if value.is_complex():
        raise InputError(
            "a function as the target returns real numbers; this one gave complex ones. Return a real part."
        )
    if value.dim() == 0 and batch > 1:
        raise InputError(f"the target function returned one number for {batch} examples; return ({batch},), one each.")
    return value.reshape(batch)
