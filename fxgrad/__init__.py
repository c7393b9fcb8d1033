"""fxgrad: rewrite any PyTorch model so that its gradient attributions are FullGrad-complete.

    libra = fxgrad.convert(model, (x,))     # same outputs, bit for bit
    libra(x)[0, target].backward()          # x.grad is now the LibraGrad gradient

The pass is one straight path, a file each: capture, classify, rewrite, check.
"""

from fxgrad.check import CheckReport, check
from fxgrad.convert import convert
from fxgrad.errors import (
    CaptureError,
    FxgradError,
    InputError,
    NoRuleError,
    NotBalanceableError,
    RuleTableError,
)
from fxgrad.methods import Attribution, attribute
from fxgrad.module import ConvertedModule
from fxgrad.vjp import VJP, vjp

__all__ = [
    "VJP",
    "Attribution",
    "CaptureError",
    "CheckReport",
    "ConvertedModule",
    "FxgradError",
    "InputError",
    "NoRuleError",
    "NotBalanceableError",
    "RuleTableError",
    "attribute",
    "check",
    "convert",
    "vjp",
]
