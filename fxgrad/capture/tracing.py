"""What holds while a model is traced: PyTorch's settings, and the calls that tracing would record wrongly."""

from __future__ import annotations

import builtins
import contextlib
import functools
import inspect
import logging
import re
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxgrad.errors import CaptureError, one_line
from fxgrad.graph.places import called_from


@contextlib.contextmanager
def without_fast_path() -> Iterator[None]:
    """Disable MultiheadAttention's fast path, a fused inference kernel that no rule covers.

    Example:
        >>> with without_fast_path():
        ...     torch.backends.mha.get_fastpath_enabled()
        False
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """Disable the fast path, and silence the tracer.

    It logs tracebacks and graphs before it raises (the error says the same), and warns that an RNN's cached list of
    weights is rebuilt, and that a checkpoint's inputs need no gradient.

    Example:
        >>> with settings():
        ...     torch.backends.mha.get_fastpath_enabled()
        False
    """
    loggers = [logging.getLogger(name) for name in _LOUD]
    disabled = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        with without_fast_path(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The tensor attributes? .* assigned during export")
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            warnings.filterwarnings("ignore", message="None of the inputs have requires_grad=True")
            warnings.filterwarnings("ignore", message="While compiling, we found certain side effects happened")
            yield
    finally:
        for logger, before in zip(loggers, disabled):
            logger.disabled = before


_LOUD = (
    *("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes", "torch.fx.experimental.proxy_tensor"),
    "torch._export.non_strict_utils",
)


class StoppedError(Exception):
    """A failure of the traced forward, its cause. It takes no graph, which torch.export would print to stderr."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "partial_fx_graph":
            super().__setattr__(name, value)


def unwrapped(error: Exception) -> Exception:
    """The failure itself, of an error that may be a `StoppedError`.

    Example:
        >>> unwrapped(ValueError("no"))
        ValueError('no')
    """
    return error.__cause__ if isinstance(error, StoppedError) and isinstance(error.__cause__, Exception) else error


@contextlib.contextmanager
def as_eager() -> Iterator[None]:
    """Let code that asks whether it is compiled or exported be told that it is not.

    Example:
        >>> with as_eager():
        ...     torch.compiler.is_exporting()
        False
    """
    names = [name for name in ("_is_compiling_flag", "_is_exporting_flag") if hasattr(torch.compiler, name)]
    told = {name: getattr(torch.compiler, name) for name in names}
    try:
        for name in told:
            setattr(torch.compiler, name, False)
        yield
    finally:
        for name, before in told.items():
            setattr(torch.compiler, name, before)


@contextlib.contextmanager
def with_builtins(own: Mapping[str, Any]) -> Iterator[None]:
    """Let the model's code call these of Python's functions, such as its own `max` where torch.export has another.

    Example:
        >>> with with_builtins({"max": max}):
        ...     max(2, 3)
        3
    """
    others = {name: getattr(builtins, name) for name in own}
    try:
        vars(builtins).update(own)
        yield
    finally:
        vars(builtins).update(others)


def under(model: nn.Module, *modes: TorchFunctionMode) -> nn.Module:
    """A module that shares all with the model, but runs its forward under these modes, above those of the tracer.

    Args:
        model: any; not changed.
        modes: entered in this order.

    Example:
        >>> model = nn.Linear(2, 3)
        >>> same = under(model, LastStates())
        >>> torch.equal(same(torch.ones(1, 2)), model(torch.ones(1, 2))), same.weight is model.weight
        (True, True)
    """

    def run(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as stack:
            for mode in modes:
                stack.enter_context(mode)
            try:
                return forward(*args, **kwargs)
            except Exception as error:
                raise StoppedError(one_line(error)) from error

    return around(model, run)


def around(model: nn.Module, run: Callable[..., Any], signature: inspect.Signature | None = None) -> nn.Module:
    """A module that shares all with the model, whose forward is another function around the model's.

    Args:
        model: any; not changed.
        run: called with the model's forward, and the arguments.
        signature: of the new forward; by default that of the model's.

    Example:
        >>> twice = around(nn.ReLU(), lambda forward, x: 2 * forward(x))
        >>> twice(torch.tensor([-1.0, 3.0]))
        tensor([0., 6.])
    """
    shell, forward = _shell(model)

    @functools.wraps(forward)
    def called(*args: Any, **kwargs: Any) -> Any:
        own = getattr(forward, "__self__", None) is shell
        with _acting(model, shell) if own else contextlib.nullcontext():
            return run(forward, *args, **kwargs)

    called.__signature__ = signature or signature_of(model)  # type: ignore[attr-defined]
    shell.__dict__["forward"] = called
    return shell


@contextlib.contextmanager
def _acting(model: nn.Module, shell: nn.Module) -> Iterator[None]:
    """Let what hooks that are bound to the model note on it be noted on the shell, which runs in its place."""
    own = model.__dict__
    object.__setattr__(model, "__dict__", shell.__dict__)
    try:
        yield
    finally:
        object.__setattr__(model, "__dict__", own)


def _shell(model: nn.Module) -> tuple[nn.Module, Callable[..., Any]]:
    """A module that shares all with the model, and what a call of it has to run."""
    kind = type(model)
    shell = object.__new__(kind)
    shell.__dict__ = dict(model.__dict__)
    if not _calls_itself(model):
        return shell, shell.__dict__.get("forward") or types.MethodType(kind.forward, shell)
    # The whole of its __call__ is the forward of a plain module, without the hooks, which its __call__ runs.
    plain: nn.Module = object.__new__(type(kind.__name__, (nn.Module,), {"__module__": kind.__module__}))
    plain.__dict__ = {
        name: type(own)() if re.match("_(forward|backward)_.*hooks", name) else own
        for name, own in shell.__dict__.items()
    }
    return plain, types.MethodType(kind.__call__, shell)


def _calls_itself(model: nn.Module) -> bool:
    """Whether a model has a `__call__` of its own, which does more than to run its forward."""
    return type(model).__call__ is not nn.Module.__call__


def signature_of(model: nn.Module) -> inspect.Signature:
    """The arguments that a call of a model takes: its forward's, or those of its own `__call__`.

    Example:
        >>> class Sized(nn.Module):
        ...     def __call__(self, x, size=None):
        ...         return super().__call__(x, len(x) if size is None else size)
        ...     def forward(self, x, size):
        ...         return x * size
        >>> signature_of(Sized())
        <Signature (x, size=None)>
    """
    forward = inspect.signature(model.forward)
    if not _calls_itself(model):
        return forward
    own = inspect.signature(types.MethodType(type(model).__call__, model))
    passed_on = all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in own.parameters.values())
    return forward if passed_on else own


def outcome(model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a model returns; tensors among the inputs that it writes to get back what they held.

    Example:
        >>> x = torch.ones(2)
        >>> outcome(torch.Tensor.zero_, (x,), {}), x
        (tensor([0., 0.]), tensor([1., 1.]))
    """
    inputs = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    before = [tensor.detach().clone() for tensor in inputs]
    outputs = model(*args, **kwargs)
    written = [(now, was) for now, was in zip(inputs, before) if not _same(now, was)]
    if written:
        outputs = pytree.tree_map_only(Tensor, Tensor.clone, outputs)  # an input may be among them
    for now, was in written:
        now.detach().copy_(was)
    return outputs


def _same(now: Tensor, was: Tensor) -> bool:
    return now.is_meta or bool(((now == was) | (now != now) & (was != was)).all())


@contextlib.contextmanager
def staying(model: nn.Module) -> Iterator[None]:
    """While a model is traced, let its forward call `.to(device)` of its own parts, where this changes nothing.

    PyTorch would fill a part with new parameters, but those that are being traced cannot be exchanged.

    Raises:
        CaptureError: inside, where it would change something.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> with staying(layer):
        ...     layer.to(layer.weight.device) is layer
        True
    """
    parts = list(model.modules())
    for part in parts:
        part.__dict__["_apply"] = functools.partial(_unchanged, part)
    try:
        yield
    finally:
        for part in parts:
            part.__dict__.pop("_apply", None)


def _unchanged(part: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    for device, dtype in {(t.device, t.dtype) for t in (*part.parameters(recurse), *part.buffers(recurse))}:
        changed = change(torch.empty(0, dtype=dtype, device=device))
        if (changed.device, changed.dtype) != (device, dtype):
            raise CaptureError(
                f"the model changes its own {type(part).__name__} from {dtype} on {device} to {changed.dtype} on "
                f"{changed.device} while it runs, at {called_from()}. Do this before, and convert the changed model."
            )
    return part


class LastStates(TorchFunctionMode):
    """Give an LSTM's last states the shape of its first ones; PyTorch 2.11 traces them with one axis too many."""

    def __torch_function__(
        self, func: Any, classes: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is not torch.lstm or len(args) < 2 or not isinstance(args[1], (list, tuple)):  # or a packed sequence
            return result
        output, *last = result
        return output, *(s if s.dim() == s0.dim() else s.reshape(s0.shape) for s, s0 in zip(last, args[1]))


class OwnGradMode(TorchFunctionMode):
    """Keep out of the trace what an autograd.Function does with the grad mode inside its forward.

    PyTorch switches gradients off around such a forward, as its backward is its own, and on again behind it, both
    unseen by the tracer. A `torch.no_grad()` inside, as in a reentrant checkpoint, would be recorded to begin and never
    to end, and all that follows would be a constant. To the graph, the ops of the forward are like any others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.expected = torch.is_grad_enabled()
        self.inside = 0

    def __torch_function__(
        self, func: Any, classes: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not torch._C._set_grad_enabled:
            return func(*args, **(kwargs or {}))
        now = torch.is_grad_enabled()
        if now is not self.expected:  # PyTorch switched, on its way into such a forward or out of it
            self.inside += 1 if self.expected else -1
        with torch._C.DisableTorchFunction() if self.inside else contextlib.nullcontext():
            result = func(*args, **(kwargs or {}))
        self.expected = torch.is_grad_enabled()
        return result
