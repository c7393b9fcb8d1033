"""`fxgrad.export_explainer`: forward and attribution as one program, in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fxgrad.errors import ExportError, first_line
from fxgrad.explainer.compact import WEIGHTS
from fxgrad.explainer.compute import identifier
from fxgrad.explainer.formats import FORMATS, Format
from fxgrad.explainer.onnx import save_onnx
from fxgrad.explainer.settings import Settings
from fxgrad.explainer.tracing import Traced, trace
from fxgrad.installed import version
from fxgrad.methods.parts import Grid
from fxgrad.module.converted import ConvertedModule
from fxgrad.table.loading import Rules


def export_explainer(
    converted: ConvertedModule,
    args: tuple[Any, ...] | Tensor,
    path: str | Path,
    *,
    kwargs: Mapping[str, Any] | None = None,
    method: str = "input_x_gradient",
    targets: int | None = None,
    channels: int | Literal["auto"] | None = "auto",
    pool: int = 1,
    output: str | None = None,
    completeness: bool = True,
    policies: Sequence[Rules] | None = None,
    weights: str = "float32",
    layer: str | None = None,
    input: str | None = None,
    blocks: Sequence[str] | None = None,
    grid: Grid | None = None,
    prefix: int | None = None,
    class_token: int | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write forward and attribution as one program, for runtimes that know neither fxgrad nor autograd.

    The program takes the model's tensor inputs by their names, and `target`, int64: the class of every example,
    (batch,); if the output has more axes, an index into each, (batch, axes), such as (token, class) for a language
    model. With `targets`, that many targets from one forward pass: (batch, targets) or (batch, targets, axes).

    Its outputs have these names and this order:

    - `logits`: the model's, (batch, classes), or with more axes;
    - `attribution`: (batch, height, width) for pictures, (batch, tokens) for token ids, else the input's shape; if
      several inputs are attributed, `attribution_NAME` for each. With `targets`, (batch, targets, ...). Methods of
      blocks and layers give (batch, rows, columns) of the patches, or (batch, tokens);
    - `completeness_error`: |y - inputs - sources| / |y| of every example, (batch,) or (batch, targets). Left out by
      methods whose numbers are no shares, such as genatt.

    With several `policies`, each has its own of these but the logits, with its name at the end: attribution_libragrad.

    All floating-point outputs have the model's dtype. The batch is dynamic, and so is every axis captured as dynamic,
    unless torch cannot keep it free in the attribution: such an axis has the size of `args`, and the metadata's
    `fixed` names it. Methods of blocks and layers fix all but the batch.

    Args:
        converted: what `fxgrad.convert` returned.
        args, kwargs: inputs, as for calling the module. Only their shapes and dtypes matter.
        path: ends in .onnx (onnxruntime and others; opset 18), .pt2 (`torch.export.load`) or .aoti
            (`torch._inductor.aoti_load_package`, or C++).
        method: one of `fxgrad.explainer.METHODS`, as for `fxgrad.attribute`.
        targets: number of targets per example; None for one, without an axis of its own.
        channels: the axis of the input to sum over; by default the channels of pictures, (batch, channels, height,
            width), and the width of embeddings. None sums over nothing.
        pool: sum the attribution of pictures over blocks of pool x pool pixels, such as the model's patches.
        output: the name of the logits among several outputs; by default `logits`.
        completeness: whether to compute the completeness error, which needs the sources' contributions.
        policies: policies to export in one file, as for `converted.under`; by default the one that it has.
        weights: how an .onnx keeps the weights of a model in float32: float32, float16 or int8. It computes in float32.
        layer, input, blocks, grid, prefix, class_token: for methods of blocks and layers, as for `fxgrad.attribute`.
        metadata: more metadata for the file, such as preprocessing or class names; JSON values.

    Returns:
        The file's metadata: method, policy, citation, versions, names and axes of inputs and outputs, and `metadata`.
        In .onnx it is metadata_props, in .pt2 the extra file explainer.json; values other than text are JSON.

    Raises:
        ExportError: an unknown ending or method, no logits among the outputs, an op that the format lacks (named, with
            its place in the model), or a missing package.
        InputError: inputs of another structure, shape or dtype than the captured ones; or the model lacks what the
            method needs.

    Example:
        >>> import fxgrad, tempfile
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 2)).eval()
        >>> x = torch.randn(2, 3)
        >>> file = tempfile.mkdtemp() + "/explainer.pt2"
        >>> export_explainer(fxgrad.convert(model, (x,)), (x,), file)["outputs"]
        ['logits', 'attribution', 'completeness_error']
        >>> explainer = torch.export.load(file).module()
        >>> logits, attribution, error = explainer(torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 1]))
        >>> attribution.shape, bool((error < 1e-4).all())
        (torch.Size([5, 3]), True)

    Source: LibraGrad, arXiv:2411.16760; FullGrad, arXiv:1905.00780, eq. 1, for the error; docs/methods.md for methods.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ExportError(f"{path} must end in one of {', '.join(FORMATS)}: the ending says which format to write.")
    if not path.parent.is_dir():
        raise ExportError(f"{path} cannot be written: there is no such folder.")
    anatomy = {"input": input, "blocks": blocks, "grid": grid, "prefix": prefix, "class_token": class_token}
    settings = Settings(method, targets, channels, pool, output, completeness, layer, anatomy)
    try:
        json.dumps(dict(metadata or {}))
    except (TypeError, ValueError) as error:
        raise ExportError(f"metadata is a dict of JSON values; this one is not: {first_line(error)}.") from error
    under = _under(converted, policies)
    leaves = converted.classified.captured.flatten(args, kwargs)
    chosen = _kept(FORMATS[path.suffix], path, weights, converted)
    pieces = chosen.decompositions()
    batch_only = chosen.fixes_sizes(converted.classified.captured.graph)
    traced = trace(under, leaves, settings, pieces, batch_only=batch_only)
    described = _described(under, settings, traced, weights, metadata)
    try:
        try:
            chosen.save(traced, path, _as_text(described))
        except ExportError:  # a format may lack an op for free sizes
            if all(set(axes) <= {0} for axes in traced.axes.values()):
                raise
            traced = trace(under, leaves, settings, pieces, batch_only=True)
            described = _described(under, settings, traced, weights, metadata)
            chosen.save(traced, path, _as_text(described))
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror or error}.") from error
    return described


def _kept(chosen: Format, path: Path, weights: str, converted: ConvertedModule) -> Format:
    """The format with its weights kept as asked for."""
    if weights not in WEIGHTS:
        raise ExportError(f"weights are kept as one of {', '.join(WEIGHTS)}, not {weights!r}.")
    if weights == "float32":
        return chosen
    if path.suffix != ".onnx":
        raise ExportError(
            f"weights={weights!r} is for .onnx; {path.suffix} keeps those that the model has. Convert model.half() "
            "for a program that computes in float16."
        )
    if not any(tensor.dtype is torch.float32 for tensor in converted.state):
        raise ExportError(f"weights={weights!r} is for models in float32. Leave it out, or convert model.float().")
    return chosen._replace(save=partial(save_onnx, weights=weights))


def _under(converted: ConvertedModule, policies: Sequence[Rules] | None) -> dict[str, ConvertedModule]:
    """Name in the file -> the module under each policy."""
    if policies is None:
        return {identifier(converted.classified.table.name): converted}
    if isinstance(policies, str) or not policies:
        raise ExportError(f"policies is a list of policies, such as ['libragrad', 'gradient'], not {policies!r}.")
    found: dict[str, ConvertedModule] = {}
    for rules in policies:
        module = converted.under(rules)
        name = identifier(module.classified.table.name)
        if name in found:
            raise ExportError(f"policies has {name!r} twice. Leave out one.")
        found[name] = module
    return found


def _described(
    under: Mapping[str, ConvertedModule],
    settings: Settings,
    traced: Traced,
    weights: str,
    metadata: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What a file says of itself."""
    tables = {name: module.classified.table for name, module in under.items()}
    table = next(iter(tables.values()))
    several = {"policies": {name: own.cite for name, own in tables.items()}} if len(tables) > 1 else {}
    return {
        "producer": f"fxgrad {version()}, torch {torch.__version__}",
        "policy": table.name,
        "cite": table.cite,
        "method": settings.method,
        "inputs": list(traced.inputs),
        "outputs": list(traced.outputs),
        "axes": {name: {str(axis): own for axis, own in axes.items()} for name, axes in traced.axes.items()},
        "fixed": {name: {str(axis): size for axis, size in axes.items()} for name, axes in traced.fixed.items()},
        "pool": settings.pool,
        **({} if weights == "float32" else {"weights_kept_as": weights}),
        **({} if settings.targets is None else {"targets": settings.targets}),
        **({} if settings.layer is None else {"layer": settings.layer}),
        **several,
        **(metadata or {}),
    }


def _as_text(described: Mapping[str, Any]) -> dict[str, str]:
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in described.items()}
