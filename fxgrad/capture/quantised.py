"""Quantised weights: constants that a forward turns into floating-point numbers.

Attribution needs no gradient of a weight. So integers are constants like any other, and what dequantises them reads
constants only, which needs no rule. Two things are refused: modules that keep their weights where PyTorch cannot trace
them, and *activations* that are quantised, since integers have no gradient.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxgrad.errors import CaptureError
from fxgrad.graph.nodes import op_name, tensors_of
from fxgrad.graph.places import place_of

SMALL = {torch.int8, torch.uint8}
SMALL |= {torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz}
"""Dtypes that activations are quantised to. Wider integers are mostly indices."""
MULTIPLIES = {"mm", "bmm", "mv", "dot", "matmul", "linear", "einsum", "_int_mm", "convolution", "conv1d", "conv2d"}


def refuse_untraceable(model: nn.Module) -> None:
    """Refuse quantised modules and tensors that PyTorch cannot trace.

    Raises:
        CaptureError: with the module's path, and how to get floating-point weights.

    Example:
        >>> refuse_untraceable(nn.Linear(2, 2))
    """
    for path, module in model.named_modules():
        kind, origin = type(module).__name__, type(module).__module__
        if origin.startswith("torch.") and ".quantized" in origin and ".reference" not in origin:
            raise CaptureError(
                f"{path or 'the model'} is a quantised {kind} of PyTorch: torch.export cannot trace its weight, and "
                "such modules compute in integers, which have no gradient. Convert the float model that it was made "
                f"from{_read(module)}."
            )
        if hasattr(module, "fake_quant_enabled") and hasattr(module, "calculate_qparams"):
            raise CaptureError(
                f"{path or 'the model'} is a {kind}, which rounds as a quantised model would. Rounding has no "
                "gradient, and the one that training pretends is not complete. Convert the float model that it was "
                "prepared from, or put torch.nn.Identity().eval() in the place of each such module."
            )
    for path, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_quantized:
            raise CaptureError(
                f"{path} is a quantised tensor ({tensor.dtype}), which torch.export cannot trace. Put its "
                ".dequantize() in its place, or keep its .int_repr() and dequantise that in forward."
            )


def _read(module: nn.Module) -> str:
    """How to make a float layer of a quantised module that shows its weight."""
    if not callable(getattr(module, "weight", None)):
        return ""
    bias = " and its bias()" if callable(getattr(module, "bias", None)) else ""
    return f", or put a float layer in its place, with its weight().dequantize(){bias}"


def quantising(error: Exception) -> str | None:
    """What to do about an error of torch.export that is about a quantised tensor; None if it is about something else.

    Example:
        >>> quantising(RuntimeError("aten.dequantize.self"))[:41]
        'it quantises a tensor (aten.dequantize), '
    """
    op = re.search(r"\b(aten|quantized)(\.|::)\w*quant\w*", str(error))
    if op is None:
        return None
    return (
        f"it quantises a tensor ({op[0]}), which torch.export cannot trace. Convert the float model; or let forward "
        "use the dequantised weight, and activations that are not rounded, since rounding has no gradient."
    )


@contextlib.contextmanager
def readable(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[None]:
    """While a model is traced, let its forward find what a library hung on its parameters.

    torch.export calls the model with stand-ins of its parameters, which have no attributes. bitsandbytes keeps the
    scales of a 4-bit weight in one, and lays the weight out for this processor at the first call: so the model runs
    once before.

    Args:
        model: the module to trace.
        args, kwargs: the example.

    Example:
        >>> class Packed(nn.Parameter):
        ...     scale: Tensor
        >>> layer = nn.Linear(2, 2, bias=False).eval()
        >>> layer.weight = Packed(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
        >>> layer.weight.scale = torch.tensor(0.5)
        >>> layer.forward = lambda x: x @ (layer.weight * layer.weight.scale)
        >>> with readable(layer, (torch.ones(1, 2),), {}):
        ...     program = torch.export.export(layer, (torch.ones(1, 2),), strict=False)
        >>> program.module()(torch.ones(1, 2))
        tensor([[1., 1.]])
    """
    named = dict(model.named_parameters())
    own = [k for k, p in named.items() if vars(p) and not (type(p) is nn.Parameter and p.is_floating_point())]
    if not own:
        yield
        return
    with contextlib.suppress(Exception), torch.no_grad():  # the trace will say what is wrong
        model(*args, **kwargs)
    kept = {path: dict(vars(model.get_parameter(path))) for path in own}

    def hang(*call: Any) -> None:
        for path, attributes in kept.items():
            stand_in = model.get_parameter(path)
            for name, value in attributes.items():
                setattr(stand_in, name, value)

    hook = model.register_forward_pre_hook(hang, prepend=True)
    try:
        yield
    finally:
        hook.remove()


def without_gradients(state: dict[str, Any]) -> None:
    """In the state of an exported program, let no tensor of a tensor class require a gradient; its integers cannot.

    Example:
        >>> without_gradients({"weight": torch.ones(2)})
    """
    for path, tensor in state.items():
        if hasattr(tensor, "__tensor_flatten__") and tensor.requires_grad:
            state[path] = nn.Parameter(tensor.detach(), requires_grad=False)


def in_parts(named: Iterable[tuple[str, Tensor]], traced: Mapping[str, Any]) -> dict[str, Any]:
    """Path -> tensor; in the place of one of a tensor class, such as torchao's, the plain tensors that it is made of.

    Args:
        named: a module's parameters or buffers, with their paths.
        traced: the state of its program in ATen ops, where PyTorch has taken such tensors apart, and named the parts.

    Example:
        >>> list(in_parts(nn.Linear(2, 2).named_parameters(), {}))
        ['weight', 'bias']
    """
    found: dict[str, Any] = {}
    for path, tensor in named:
        if hasattr(tensor, "__tensor_flatten__"):
            owner, dot, name = path.rpartition(".")
            prefix = f"{owner}{dot}parametrizations.{name}."
            found |= {part: plain for part, plain in traced.items() if part.startswith(prefix)}
        else:
            found[path] = tensor
    return found


def refuse_integers(graph: fx.Graph, entries: Iterable[fx.Node]) -> None:
    """Refuse a graph in which activations are quantised to integers (or to 8-bit floats) that outputs are made of.

    Args:
        graph: functional ATen graph.
        entries: the placeholders of the attributed inputs.

    Raises:
        CaptureError: with the ops, where they are called, and how to get floating-point weights.

    Example:
        >>> class Static(nn.Module):
        ...     def forward(self, x):
        ...         return (x * 9).to(torch.int8) * 0.1 + x
        >>> graph = torch.export.export(Static(), (torch.ones(2),)).run_decompositions({}).graph
        >>> refuse_integers(graph, [node for node in graph.nodes if node.op == "placeholder"])
        Traceback (most recent call last):
        ...
        fxgrad.errors.CaptureError: the model quantises its activations: ...
    """
    used, computed = _used(graph), set(entries)
    found: dict[str, fx.Node] = {}
    for node in graph.nodes:
        operands = [v for n in node.all_input_nodes if n in computed for v in tensors_of(n)[:1]]
        result = next(iter(tensors_of(node)), None)
        if node.op != "call_function" or node not in used or not operands or result is None:
            continue
        if _quantises(node, result, operands):
            found.setdefault(place_of(node).module_path, node)
        elif result.is_floating_point() or op_name(node) == "_to_copy" or not _floats(operands):
            computed.add(node)  # other integers that are made of floats are positions, such as those of argmax
    if not found:
        return
    lines = [f"  {node.target} at {place_of(node)}" for node in list(found.values())[:3]]
    lines += [f"  and in {len(found) - 3} more modules"] if len(found) > 3 else []
    raise CaptureError(
        "the model quantises its activations: it computes in integers or 8-bit floats, which have no gradient:\n"
        + "\n".join(lines)
        + "\nConvert the float model, or dequantise: model.dequantize() (transformers), layer.weight = "
        "torch.nn.Parameter(layer.weight.dequantize()) for each of these layers (torchao). Layers of which only "
        "the weight is quantised convert as they are."
    )


def _quantises(node: fx.Node, result: Tensor, operands: list[Tensor]) -> bool:
    """Whether a node rounds what was computed from the inputs to a small dtype, or multiplies matrices of integers."""
    if op_name(node).startswith(("fake_quantize", "_fake_quantize", "fused_moving_avg_obs_fake_quant")):
        return True
    if result.dtype in SMALL:
        return _floats(operands)
    return not result.is_floating_point() and op_name(node) in MULTIPLIES


def _floats(tensors: list[Tensor]) -> bool:
    return any(v.is_floating_point() and v.dtype not in SMALL for v in tensors)


def _used(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that the outputs are made of, other than by comparisons and by what the model detaches."""
    used: set[fx.Node] = set()
    pending = list(graph.output_node().all_input_nodes)
    while pending:
        node = pending.pop()
        compared = any(v.dtype is torch.bool for v in tensors_of(node)[:1])
        if node not in used and op_name(node) != "detach" and not compared:
            used.add(node)
            pending += node.all_input_nodes
    return used
