"""fxgrad: rewrite any PyTorch model so that its gradient attributions are FullGrad-complete.

    libra = fxgrad.convert(model, (x,))     # same outputs, bit for bit
    libra(x)[0, target].backward()          # x.grad is now the LibraGrad gradient

The pass is one straight path, a file each: capture, classify, rewrite, check.
"""

from fxgrad.errors import (
    ArtefactError,
    CaptureError,
    ExportError,
    FxgradError,
    InputError,
    NoRuleError,
    NotBalanceableError,
    RuleTableError,
)
from fxgrad.explainer import export_explainer
from fxgrad.methods import Attribution, attribute
from fxgrad.module.converted import ConvertedModule
from fxgrad.module.save import load, save
from fxgrad.pipeline import convert
from fxgrad.proof.check import CheckReport, check
from fxgrad.run.vjp import VJP, vjp

__all__ = [
    "VJP",
    "ArtefactError",
    "Attribution",
    "CaptureError",
    "CheckReport",
    "ConvertedModule",
    "ExportError",
    "FxgradError",
    "InputError",
    "NoRuleError",
    "NotBalanceableError",
    "RuleTableError",
    "attribute",
    "check",
    "convert",
    "export_explainer",
    "load",
    "save",
    "vjp",
]
