"""`fxgrad.attribute`: any method, of any target, under any policy."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.methods import attentions, cams, fullgrad, inputs
from fxgrad.methods.attribution import Attribution, joined
from fxgrad.methods.parts import Grid
from fxgrad.methods.problem import Map, Problem
from fxgrad.methods.search import Search
from fxgrad.methods.targets import Target, scored
from fxgrad.module.converted import ConvertedModule

METHODS: dict[str, Callable[..., Map]] = {
    f.__name__: f
    for f in (
        *(inputs.gradient, inputs.saliency, inputs.input_x_gradient, inputs.integrated_gradients, inputs.smoothgrad),
        *(cams.gradcam, cams.gradcam_plus, cams.xgradcam_plus, cams.hirescam),
        *(fullgrad.fullgrad, fullgrad.fullgrad_plus),
        *(attentions.attcat, attentions.genatt, attentions.gradsam, attentions.tokentm),
        *(attentions.raw_attention, attentions.rollout, inputs.random),
    )
}
"""Every method by its name; the docstrings have the formulas."""
SHARES = ("input_x_gradient", "hirescam", "fullgrad", "fullgrad_plus")
"""Methods that also count what the constants contribute."""
LAYERED = ("gradcam", "gradcam_plus", "xgradcam_plus", "hirescam")


@overload
def attribute(
    converted: ConvertedModule,
    args: tuple[Any, ...] = ...,
    kwargs: Mapping[str, Any] | None = ...,
    *,
    target: list[Target],
    method: str = ...,
    layer: str | None = ...,
    **options: Any,
) -> list[Attribution]: ...
@overload
def attribute(
    converted: ConvertedModule,
    args: tuple[Any, ...] = ...,
    kwargs: Mapping[str, Any] | None = ...,
    *,
    target: Target,
    method: str = ...,
    layer: str | None = ...,
    **options: Any,
) -> Attribution: ...
def attribute(
    converted: ConvertedModule,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: Target | list[Target],
    method: str = "input_x_gradient",
    layer: str | None = None,
    class_names: Sequence[str] | None = None,
    input: str | None = None,
    blocks: Sequence[str] | None = None,
    grid: Grid | None = None,
    prefix: int | None = None,
    class_token: int | None = None,
    **options: Any,
) -> Attribution | list[Attribution]:
    """Attribute a target to the input: what speaks for it, and what against it.

    Args:
        converted: what `fxgrad.convert` returned, under any policy; `converted.under("gradient")` is the plain one.
        args, kwargs: inputs, as for calling it; all examples of the batch are attributed at once.
        target: a class's number or name, an int64 tensor (batch,) with one class per example, None for the largest
            logit, a `Contrast`, `Token`, `Probability` or `Similarity`, or any function of the outputs that returns
            (batch,). A list of them gives a list of attributions.
        method: a name in `fxgrad.methods.METHODS`.
        layer: module path whose output gradcam, gradcam_plus, xgradcam_plus and hirescam look at; by default they take
            the input of the last block.
        class_names: one per logit, for targets by name.
        input: name of the attributed input, where there are several.
        blocks, grid, prefix, class_token: what the graph of the model would tell; see `fxgrad.methods.Anatomy`.
        **options: of the method, such as n_steps of integrated_gradients.

    Returns:
        The attribution: .tokens (batch, tokens), .patches (batch, rows, columns), .pixels (batch, height, width).

    Raises:
        InputError: no such method, option, layer or target; or the model lacks what the method needs: the message says
            what.

    Example:
        >>> import fxgrad, timm
        >>> vit = timm.create_model("test_vit").eval()
        >>> x = torch.randn(2, 3, 160, 160)
        >>> libra = fxgrad.convert(vit, (x,))
        >>> found = attribute(libra, (x,), target=torch.tensor([7, 3]), method="fullgrad")
        >>> found.patches.shape, found.completeness_error < 1e-4
        (torch.Size([2, 10, 10]), True)

    Source: docs/methods.md has every method's formula and paper.
    """
    if method not in METHODS:
        raise InputError(f"there is no method {method!r}. There are {', '.join(METHODS)}.")
    known = list(inspect.signature(METHODS[method]).parameters)[1:]
    unknown = [name for name in options if name not in known]
    if unknown:
        takes = f"takes {', '.join(known)}" if known else "takes none of its own"
        raise InputError(f"{method} has no option {unknown[0]!r}; it {takes}.")
    if layer is not None and method not in LAYERED:
        raise InputError(f"{method} does not look at one layer. Leave out layer={layer!r}; {', '.join(LAYERED)} do.")
    with torch.no_grad():
        entries = converted.entries(args, kwargs or {})
    search = Search(converted.classified, input, entries)
    parts = search.anatomy(blocks, grid, prefix, class_token)
    with torch.no_grad():
        outputs = converted.run(entries)

    def one(target: Target) -> Attribution:
        fitted = scored(target, outputs, class_names)
        output = fitted.score(outputs).detach()
        problem = Problem(converted, entries, fitted, parts, layer)
        if problem.batch > 1 and method in SHARES and problem.mixed:
            single = [problem.only(i) for i in range(problem.batch)]
            return joined([_solved(method, p, y[None], options) for p, y in zip(single, output)])
        return _solved(method, problem, output, options)

    return [one(t) for t in target] if isinstance(target, list) else one(target)


def _solved(method: str, problem: Problem, output: Tensor, options: Mapping[str, Any]) -> Attribution:
    found = METHODS[method](problem, **options)
    map = found.tokens if found.pixels is None else found.pixels
    assert map is not None
    return Attribution(
        method,
        problem.converted.classified.table.name,
        problem.target.label,
        output,
        map.detach(),
        None if found.apart is None else found.apart.detach(),
        found.copies,
        problem.anatomy,
        problem.target.note,
    )
