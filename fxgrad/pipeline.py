"""The whole pass in one call: capture -> classify -> rewrite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from fxgrad.capture.export import capture
from fxgrad.classify.walk import classify
from fxgrad.errors import CaptureError
from fxgrad.module.converted import ConvertedModule
from fxgrad.module.rewrite import rewrite
from fxgrad.table.loading import OnUnknown, Rules, load


def convert(
    model: nn.Module | ExportedProgram | str | Path,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    rules: Rules = "libragrad",
    dynamic_shapes: Any = None,
    through_no_grad: bool = False,
    on_unknown: OnUnknown = "error",
) -> ConvertedModule:
    """Rewrite a model so that its gradient attributions are FullGrad-complete. The model stays as it is.

    Args:
        model: any module in eval mode, an ExportedProgram, or the path of a .pt2 file.
        args, kwargs: example inputs, as for calling the model. Floating-point inputs and the embeddings of token ids
            are attributed. All sizes stay free that the model's code leaves free: batch, sequence, picture. The report
            names the line that fixed a size, as does the error for an input of another size.
        rules: the policy: a preset ("libragrad", "attnlrp", "gradient"), the path of a TOML file, or a list of
            these, such as ["libragrad", "my_ops.toml"]. The list may also have {op: function} for custom ops.
        dynamic_shapes: as for `torch.export.export`, to choose the free sizes yourself.
        through_no_grad: also attribute parts that the model computes under its own `torch.no_grad()`, such as a
            frozen backbone. By default their results are constants, as for autograd.
        on_unknown: "error" refuses a model with ops that no rule covers; "native" keeps these ops' own
            gradients, and `fxgrad.check` shows by how much completeness suffers.

    Returns:
        A drop-in module with the same outputs (bit for bit), output structure and state_dict keys. The gradients of
        its inputs are the policy's.

    Raises:
        CaptureError: the model is not one graph (train mode, control flow on data, wrong examples).
        NoRuleError: some ops have no row in the rule table; all of them are listed.
        NotBalanceableError: a pure gate (softmax weights) reaches the output other than as a multiplier.
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
    options = {"dynamic_shapes": dynamic_shapes, "through_no_grad": through_no_grad}
    captured = capture(model, args, kwargs, table=table, **options)
    classified = classify(captured, table)
    return ConvertedModule(classified, rewrite(classified))
