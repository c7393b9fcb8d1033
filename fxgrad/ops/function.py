"""The base class of the autograd functions in `fxgrad.ops`."""

from __future__ import annotations

from types import new_class
from typing import Any, ClassVar

import torch

TRANSFORMED: Any = getattr(torch._C, "_are_functorch_transforms_active", None)
"""Tells whether a call is inside a transformation of `torch.func`; None if PyTorch no longer has the function."""


def transformed() -> bool:
    """Whether a call is inside `torch.compile` or a transformation of `torch.func`.

    Example:
        >>> transformed()
        False
    """
    return TRANSFORMED is None or torch.compiler.is_compiling() or TRANSFORMED()


class Function(torch.autograd.Function):
    """An autograd function that works with `torch.func` and `torch.compile`, and is as cheap as an op in eager mode.

    `torch.func` and `torch.compile` need a separate `setup_context`. With it, `apply` binds every call to the signature
    of `forward` and takes five times as long as a small op. So each class has an eager form whose `forward` does both.

    Example:
        >>> class Twice(Function):
        ...     @staticmethod
        ...     def forward(x):
        ...         return 2 * x
        ...     @staticmethod
        ...     def setup_context(ctx, inputs, output):
        ...         pass
        ...     @staticmethod
        ...     def backward(ctx, cotangent):
        ...         return 2 * cotangent
        >>> Twice.call(torch.ones(1, requires_grad=True)).item(), torch.func.grad(Twice.call)(torch.tensor(1.0)).item()
        (2.0, 2.0)
    """

    generate_vmap_rule = True
    _eager: ClassVar[Any]

    def __init_subclass__(cls) -> None:
        def forward(ctx: Any, *args: Any) -> Any:
            output = cls.forward(*args)
            cls.setup_context(ctx, args, output)
            return output

        def body(namespace: dict[str, Any]) -> None:
            namespace.update(forward=staticmethod(forward), backward=staticmethod(cls.backward))

        cls._eager = new_class(cls.__name__, (torch.autograd.Function,), exec_body=body)

    @classmethod
    def call(cls, *args: Any) -> Any:
        """Like `apply`, but with an argument for every parameter of `forward`."""
        return (cls if transformed() else cls._eager).apply(*args)
