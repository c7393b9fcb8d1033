"""fxgrad: rewrite any PyTorch model so that its gradient attributions are FullGrad-complete.

    libra = fxgrad.convert(model, (x,))     # same outputs, bit for bit
    libra(x)[0, target].backward()          # x.grad is now the LibraGrad gradient

The stages lie in one folder each: capture, classify, module, proof. A name below is imported on first use, so that
`import fxgrad` is fast.
"""

from typing import TYPE_CHECKING

from fxgrad import lazy

if TYPE_CHECKING:
    from fxgrad.capture.within import returning
    from fxgrad.errors import (
        ArtefactError,
        CaptureError,
        ExportError,
        FxgradError,
        IncompleteWarning,
        InputError,
        NoRuleError,
        NotBalanceableError,
        RuleTableError,
    )
    from fxgrad.explainer import export_explainer
    from fxgrad.flows.graph import flow
    from fxgrad.flows.linear import LinearMap, linear_map
    from fxgrad.flows.origin import Origins, origins
    from fxgrad.flows.pairs import Pairs, pairs
    from fxgrad.flows.patch import patching
    from fxgrad.flows.patched import Patching
    from fxgrad.flows.units import Channels, Heads
    from fxgrad.methods import Attribution, attribute
    from fxgrad.methods.relevance import Trace, trace
    from fxgrad.module.converted import ConvertedModule
    from fxgrad.module.save import load, save
    from fxgrad.pipeline import convert
    from fxgrad.proof.check import CheckReport, check
    from fxgrad.run.vjp import VJP, vjp

    __version__: str

__all__ = [
    "VJP",
    "ArtefactError",
    "Attribution",
    "CaptureError",
    "Channels",
    "CheckReport",
    "ConvertedModule",
    "ExportError",
    "FxgradError",
    "Heads",
    "IncompleteWarning",
    "InputError",
    "LinearMap",
    "NoRuleError",
    "NotBalanceableError",
    "Origins",
    "Pairs",
    "Patching",
    "RuleTableError",
    "Trace",
    "attribute",
    "check",
    "convert",
    "export_explainer",
    "flow",
    "linear_map",
    "load",
    "origins",
    "pairs",
    "patching",
    "returning",
    "save",
    "trace",
    "vjp",
]

_HOMES = {
    "returning": "capture.within",
    "ArtefactError": "errors",
    "CaptureError": "errors",
    "ExportError": "errors",
    "FxgradError": "errors",
    "IncompleteWarning": "errors",
    "InputError": "errors",
    "NoRuleError": "errors",
    "NotBalanceableError": "errors",
    "RuleTableError": "errors",
    "export_explainer": "explainer",
    "flow": "flows.graph",
    "LinearMap": "flows.linear",
    "linear_map": "flows.linear",
    "Origins": "flows.origin",
    "origins": "flows.origin",
    "Pairs": "flows.pairs",
    "pairs": "flows.pairs",
    "Patching": "flows.patched",
    "Channels": "flows.units",
    "Heads": "flows.units",
    "patching": "flows.patch",
    "Attribution": "methods",
    "attribute": "methods",
    "Trace": "methods.relevance",
    "trace": "methods.relevance",
    "ConvertedModule": "module.converted",
    "load": "module.save",
    "save": "module.save",
    "convert": "pipeline",
    "CheckReport": "proof.check",
    "check": "proof.check",
    "VJP": "run.vjp",
    "vjp": "run.vjp",
}
"""Public name -> the module that has it."""
_PARTS = (
    *("errors", "kinds", "graph", "ops", "pt2", "capture", "table", "classify", "report", "module", "pipeline", "run"),
    *("proof", "methods", "flows", "text", "metrics", "explainer", "data", "evaluate", "zoo"),
)
"""Modules that work after `import fxgrad` alone, such as `fxgrad.methods.METHODS`."""

__getattr__, __dir__ = lazy.names(__name__, {**_HOMES, **dict.fromkeys(_PARTS, ""), "__version__": "installed"})
