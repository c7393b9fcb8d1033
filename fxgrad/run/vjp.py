"""Many targets from one forward pass: K cotangents, in as few backward passes as memory allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxgrad.errors import InputError, first_line
from fxgrad.module.converted import ConvertedModule
from fxgrad.run.passes import at_once, differentiated, measuring
from fxgrad.run.recording import refuse_unbalanced


@dataclass(frozen=True)
class VJP:
    """The result of `vjp`.

    Attributes:
        outputs: the module's outputs, in the original's structure, detached.
        gradients: name of each attributed input (for token ids, of their embedding) -> (K, *its shape).
    """

    outputs: Any
    gradients: Mapping[str, Tensor]


def vjp(
    converted: ConvertedModule,
    args: tuple[Any, ...] | Tensor,
    cotangents: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    chunk: int | None = None,
) -> VJP:
    """The balanced gradients for K cotangents, from one forward pass.

    Args:
        converted: what `fxgrad.convert` returned.
        args, kwargs: inputs, as for calling it.
        cotangents: structured as the outputs, every tensor (K, *the output's shape); None for an output that takes no
            part.
        chunk: cotangents per backward pass, batched by `torch.func.vmap`; 1 takes them one by one. By default as many
            as fit: on a CPU into the cache, else into a quarter of the free memory; 1 for a compiled module, since
            vmap does not look into compiled code.

    Returns:
        The outputs, and for every attributed input its K gradients.

    Raises:
        InputError: cotangents of another structure or shape, a chunk below 1, inputs that the module does not take, or
            an op whose gradient vmap cannot batch.
        NotBalanceableError, NoRuleError: cotangents of an output that cannot be balanced; pass None for it.

    Example:
        >>> import fxgrad
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 5)).eval()
        >>> x = torch.randn(2, 3)
        >>> libra = fxgrad.convert(model, (x,))
        >>> classes = torch.tensor([4, 0, 2])
        >>> targets = torch.nn.functional.one_hot(classes, 5).float()[:, None].expand(3, 2, 5)
        >>> vjp(libra, (x,), targets).gradients["input"].shape
        torch.Size([3, 2, 3])

    Source: LibraGrad, arXiv:2411.16760, for the gradient; `torch.autograd.grad`, for batches.
    """
    captured = converted.classified.captured
    with torch.no_grad():
        entries = converted.entries(args, kwargs)
    entries = [v.detach().requires_grad_() if i.attributed else v for i, v in zip(captured.entries, entries)]
    attributed = {i.name: v for i, v in zip(captured.entries, entries) if i.attributed}
    with torch.enable_grad(), measuring(converted) as widest:
        outputs = converted.run(entries)
    leaves, spec = pytree.tree_flatten(outputs)
    count, given = _matched(leaves, pytree.tree_leaves(cotangents))
    refuse_unbalanced(converted, given)
    pairs = [(v, g) for v, g in zip(leaves, given) if g is not None and v.requires_grad]
    size = 1 if converted.is_compiled and chunk is None else _size(chunk, count, widest[0], leaves)
    parts: dict[str, list[Tensor]] = {name: [] for name in attributed}
    for first in range(0, count, size):
        part = [g[first : first + size] for _, g in pairs]
        gradients = _backward([v for v, _ in pairs], list(attributed.values()), part, last=first + size >= count)
        for (name, x), gradient in zip(attributed.items(), gradients):
            parts[name].append(x.new_zeros(min(size, count - first), *x.shape) if gradient is None else gradient)
    detached = [v.detach() if isinstance(v, Tensor) else v for v in leaves]
    return VJP(
        pytree.tree_unflatten(detached, spec),
        {
            name: torch.cat(p) if p else attributed[name].new_zeros(0, *attributed[name].shape)
            for name, p in parts.items()
        },
    )


def _matched(outputs: list[Any], cotangents: list[Any]) -> tuple[int, list[Tensor | None]]:
    """(K, one stack of cotangents per output, None for an output without one)."""
    shapes = [tuple(v.shape) if isinstance(v, Tensor) else None for v in outputs]
    given = [tuple(g.shape) if isinstance(g, Tensor) else g for g in cotangents]
    counts = {g[0] for g in given if isinstance(g, tuple) and g}
    fits = len(given) == len(shapes) and all(
        g is None or (isinstance(g, tuple) and g[1:] == s) for g, s in zip(given, shapes)
    )
    if not fits or len(counts) != 1:
        wanted = ", ".join("None" if s is None else f"(K, {', '.join(map(str, s))})" for s in shapes)
        raise InputError(f"the cotangents are shaped {given}, but the outputs want {wanted}, with one K for all.")
    return counts.pop(), [None if g is None else g.to(v) for g, v in zip(cotangents, outputs)]


def _size(chunk: int | None, count: int, widest: int, outputs: list[Any]) -> int:
    """How many cotangents to take at once."""
    if chunk is not None:
        if not isinstance(chunk, int) or chunk < 1:
            raise InputError(f"chunk is how many cotangents go backward at once, at least 1, not {chunk!r}.")
        return chunk
    return at_once(count, widest, outputs)


def _backward(outputs: list[Tensor], inputs: list[Tensor], cotangents: list[Tensor], last: bool) -> list[Tensor | None]:
    """The inputs' gradients for a chunk of cotangents, each (chunk, *the input's shape)."""
    if not outputs:
        return [None] * len(inputs)
    if len(cotangents[0]) == 1:
        gradients = differentiated(outputs, inputs, [g[0] for g in cotangents], keep=not last)
        return [None if g is None else g[None] for g in gradients]
    try:
        return list(
            torch.autograd.grad(
                outputs, inputs, cotangents, retain_graph=not last, allow_unused=True, is_grads_batched=True
            )
        )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise InputError(f"some op's gradient cannot be batched ({first_line(error)}). Pass chunk=1.") from error
