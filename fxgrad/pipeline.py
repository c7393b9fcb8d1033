"""The whole pass in one call: capture -> classify -> rewrite."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from fxgrad.capture.captured import Captured
from fxgrad.capture.export import capture, program_of
from fxgrad.capture.trace import OnRandom
from fxgrad.classify.walk import classify
from fxgrad.errors import CaptureError, FxgradError, NotBalanceableError, OtherComputationError
from fxgrad.module.converted import ConvertedModule
from fxgrad.module.rewrite import rewrite
from fxgrad.module.verify import verify as verified
from fxgrad.table.loading import OnUnknown, Rules, RuleTable, load

_LOG = logging.getLogger(__name__)


def convert(
    model: nn.Module | ExportedProgram | str | Path,
    args: tuple[Any, ...] | Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    rules: Rules = "libragrad",
    dynamic_shapes: Any = None,
    through_no_grad: bool = False,
    on_unknown: OnUnknown = "error",
    on_random: OnRandom = "error",
    verify: bool = True,
) -> ConvertedModule:
    """Rewrite a model so that its gradient attributions are FullGrad-complete. The model stays as it is.

    `logging.getLogger("fxgrad")` says at INFO what is being done.

    Args:
        model: any module in eval mode, an ExportedProgram, or the path of a .pt2 file.
        args, kwargs: example inputs, as for calling the model; (x,) may be written x. Floating-point inputs and the
            embeddings of token ids are attributed. All sizes stay free that the model's code leaves free: batch,
            sequence, picture. The report names the line that fixed a size, as does the error for an input of another
            size.
        rules: the policy: a preset ("libragrad", "attnlrp", "gradient"), the path of a TOML file, or a list of
            these, such as ["libragrad", "my_ops.toml"]. The list may also have {op: function} for custom ops.
            Parameters of a policy stand behind its name: "gamma (gamma = 0.5)".
        dynamic_shapes: as for `torch.export.export`, to choose the free sizes yourself. Those at `Dim.AUTO` are free
            where the model's code allows it, and else fixed, which the report says.
        through_no_grad: also attribute parts that the model computes under its own `torch.no_grad()`, such as a
            frozen backbone. By default their results are constants, as for autograd.
        on_unknown: "error" refuses a model with ops that no rule covers; "native" keeps these ops' own
            gradients, and `fxgrad.check` shows by how much completeness suffers.
        on_random: "error" refuses a model that draws random numbers; "freeze" draws them once, for the example, and
            keeps them as constants, with the sizes of the example.
        verify: run the model and the converted module on the example, and compare them bit for bit.

    Returns:
        A drop-in module with the same outputs (bit for bit), output structure and state_dict keys. The gradients of
        its inputs are the policy's. A cache (any object of which torch knows no structure) is taken as an input, tensor
        by tensor, and left as it is; among the outputs, None stands in its place.

    Raises:
        CaptureError: the model is not one graph (train mode, TorchScript, control flow, wrong examples), draws random
            numbers, or computes something else while it is captured.
        InputError: the example does not fit the model's forward, or its dtype the weights.
        NoRuleError: every output depends on ops that have no row in the rule table; all of them are listed.
        NotBalanceableError: a pure gate (softmax weights) reaches every output other than as a multiplier. If only some
            outputs cannot be balanced, a gradient of these raises the error.
        RuleTableError: a rule file is malformed.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.GELU(), nn.Linear(4, 2, bias=False)).eval()
        >>> x = torch.randn(1, 3, requires_grad=True)
        >>> libra = convert(model, (x,))
        >>> libra(x)[0, 1].backward()
        >>> torch.allclose((x * x.grad).sum(), model(x)[0, 1])
        True

    Source: LibraGrad (Mehri, Baghshah, Pilehvar, CVPR 2025, arXiv:2411.16760).
    """
    if isinstance(model, ConvertedModule):
        name = model.classified.table.name
        raise CaptureError(f"the model is converted already, with rules={name!r}. Convert the original.")
    table = load(rules, on_unknown)
    if isinstance(model, (str, Path)):
        model = program_of(model)
    options: dict[str, Any] = {"dynamic_shapes": dynamic_shapes, "through_no_grad": through_no_grad}
    take = partial(capture, model, args, kwargs, on_random=on_random, table=table, **options)
    recapture = isinstance(model, nn.Module) and dynamic_shapes is None
    converted = _converted(take, table, recapture)
    if not verify:
        return converted
    _LOG.info("comparing the outputs on the example")
    try:
        verified(converted, model)
    except OtherComputationError:
        again = _as_eager(model, take, table, recapture) if isinstance(model, nn.Module) else None
        if again is None:
            raise
        return again
    return converted


def _converted(take: Callable[..., Captured], table: RuleTable, recapture: bool) -> ConvertedModule:
    """What `take` captures, classified and rewritten; with fewer free sizes where these leave open what balances."""
    captured = take()
    _LOG.info("choosing a backward for each of %d nodes", len(captured.graph.nodes))
    again = recapture and bool(captured.unsettled)
    try:
        classified = classify(captured, table)
        again = again and any(r.error == NotBalanceableError.__name__ for r in classified.refusals)
    except NotBalanceableError:
        if not again:
            raise
    if again:
        _LOG.info("capturing again, with fewer free sizes")
        classified = classify(take(fixed=captured.unsettled), table)
    return ConvertedModule(classified, rewrite(classified))


def _as_eager(
    model: nn.Module, take: Callable[..., Captured], table: RuleTable, recapture: bool
) -> ConvertedModule | None:
    """A conversion of what the model runs when it is told that it is not exported; None if that differs, too."""
    _LOG.info("the outputs differ: capturing again, as the model runs when it is not exported")
    try:
        converted = _converted(partial(take, eager=True), table, recapture)
        verified(converted, model)
    except FxgradError:
        return None
    return converted
