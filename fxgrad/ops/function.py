"""The base class of the autograd functions in `fxgrad.ops`, and whether a call is recorded or transformed."""

from __future__ import annotations

from types import new_class
from typing import Any, ClassVar

import torch
from torch import Tensor

TRANSFORMED: Any = getattr(torch._C, "_are_functorch_transforms_active", None)
"""Tells whether a call is inside a transformation of `torch.func`; None if PyTorch no longer has the function."""
MODES: Any = getattr(torch._C, "_len_torch_dispatch_stack", None)
"""The number of active modes that see every op, such as a trace; None if PyTorch no longer has the function."""


def transformed() -> bool:
    """Whether a call is transformed or recorded: by `torch.compile`, by `torch.func`, or by a mode such as a trace.

    If not, it may take whatever kernels are fastest.

    Example:
        >>> transformed()
        False
    """
    if TRANSFORMED is None or MODES is None:
        return True
    return torch.compiler.is_compiling() or TRANSFORMED() or MODES() > 0


def recording(*operands: Any) -> bool:
    """Whether autograd may record a call with these operands, so that tensors must be kept for the backward.

    Example:
        >>> with torch.no_grad():
        ...     recording(torch.ones(1, requires_grad=True))
        False
    """
    if not torch.is_grad_enabled():
        return False
    # torch.compile cannot trace an autograd.Function that records nothing. In eager mode, a tensor wrapped by vmap does
    # not tell whether the tensor inside requires a gradient.
    return not torch.compiler.is_compiling() or any(isinstance(o, Tensor) and o.requires_grad for o in operands)


class Function(torch.autograd.Function):
    """An autograd function that works with `torch.func` and `torch.compile`, and is as cheap as an op in eager mode.

    `torch.func` and `torch.compile` need a separate `setup_context`, and take what it keeps from the outputs. With it,
    `apply` binds every call to the signature of `forward` and takes five times as long as a small op. So each class has
    an eager form, whose `forward` does both and returns the result alone.

    Attributes:
        keeps: whether `forward` returns (result, *what only the backward needs), tensors all.

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
    keeps: ClassVar[bool] = False
    _eager: ClassVar[Any]

    def __init_subclass__(cls) -> None:
        run, keep, pull, keeps = cls.forward, cls.setup_context, cls.backward, cls.keeps

        def forward(ctx: Any, *args: Any) -> Any:
            output = run(*args)
            keep(ctx, args, output)
            return output[0] if keeps else output

        def body(namespace: dict[str, Any]) -> None:
            namespace.update(forward=staticmethod(forward), backward=staticmethod(pull))

        cls._eager = new_class(cls.__name__, (torch.autograd.Function,), exec_body=body)
        if not keeps:
            return

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
            ctx.set_materialize_grads(False)
            ctx.mark_non_differentiable(*output[1:])
            keep(ctx, inputs, output)

        def backward(ctx: Any, cotangent: Any, *_: None) -> Any:
            return (None,) * len(ctx.needs_input_grad) if cotangent is None else pull(ctx, cotangent)

        cls.setup_context, cls.backward = staticmethod(setup_context), staticmethod(backward)  # type: ignore[method-assign]

    @classmethod
    def call(cls, *args: Any) -> Any:
        """Like `apply`, but with an argument for every parameter of `forward`; returns the result alone."""
        if not transformed():
            return cls._eager.apply(*args)
        output = cls.apply(*args)
        return output[0] if isinstance(output, tuple) else output
