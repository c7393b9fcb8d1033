"""A model cut short: it returns what one of its modules does, such as the logits in front of a softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from fxgrad.capture.tracing import around
from fxgrad.errors import InputError, closest


def returning(model: nn.Module, path: str) -> nn.Module:
    """A model whose outputs are those of one of its modules. Parameters, module paths and inputs stay the same.

    A model that ends with a softmax has no balanced gradient of its outputs, but of the logits in front of it.

    Args:
        model: any; not changed.
        path: of a module that the model calls once, as in `model.named_modules()`.

    Returns:
        A module that shares all with the model. It runs the whole model; `fxgrad.convert` drops what is not needed.

    Raises:
        InputError: there is no such module. When the result is called: the model does not call it, or more than once.

    Example:
        >>> import fxgrad, torch
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2), nn.LogSoftmax(-1)).eval()
        >>> libra = fxgrad.convert(returning(model, "2"), (torch.randn(5, 3),))
        >>> fxgrad.check(libra).passed, list(libra.state_dict()) == list(model.state_dict())
        (True, True)

    Source: of logits, not probabilities, as in Alber et al., iNNvestigate neural networks!, arXiv:1808.04260.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"fxgrad.returning takes a module, not {type(model).__name__}: cut the model that it was made of."
        )
    modules = {name: module for name, module in model.named_modules() if name}
    if path not in modules:
        close = closest(path, modules)
        raise InputError(
            f"the model has no module {path!r}. " + (f"Close to it: {close}." if close else "It has none.")
        )

    def run(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        found: list[Any] = []
        hook = modules[path].register_forward_hook(lambda module, inputs, output: found.append(output))
        try:
            forward(*args, **kwargs)
        finally:
            hook.remove()
        if len(found) != 1:
            often = f"{len(found)} times" if found else "not at all"
            raise InputError(f"the model calls {path!r} {often}, and not once. Choose a module that it calls once.")
        return found[0]

    return around(model, run)
