"""What the backwards of `fxgrad.ops` are written in."""

from __future__ import annotations

from types import new_class
from typing import Any, ClassVar

import torch

TRANSFORMED: Any = getattr(torch._C, "_are_functorch_transforms_active", None)
"""Whether the call is inside a transformation of `torch.func`; None where PyTorch says so no more."""


class Function(torch.autograd.Function):
    """An autograd function for `torch.func` and `torch.compile`, at the cost of an op where there is neither.

    With a `setup_context` of its own, as they need it, a function's `apply` takes five times as long as a small op:
    every call is bound to the signature of `forward`. So each class has an eager form, whose `forward` sets it up.

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
        """As `apply`, with an argument for every parameter of `forward`."""
        transformed = TRANSFORMED is None or torch.compiler.is_compiling() or TRANSFORMED()
        return (cls if transformed else cls._eager).apply(*args)
