"""The exceptions of fxgrad, one class per cause, all under `FxgradError`.

Every message says what happened, where (module path, source line) and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 400
"""Characters of another library's message that are kept."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not blank, cut where it is long; else the error's class name.

    Example:
        >>> first_line(ValueError("\\n no such op \\n")), len(first_line(ValueError("long " * 500)))
        ('no such op', 400)
    """
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."


def one_line(error: BaseException) -> str:
    """An error of another library as one line: its class name and the first line of its message."""
    return f"{type(error).__name__}: {first_line(error)}"


def closest(name: str, known: Iterable[str]) -> str:
    """Up to three names that are close to a wrong one, else the first ones; "" if there are none.

    Example:
        >>> closest("haed", ["body", "head"]), closest("x", ["body", "head"])
        ('head', 'body, head')
    """
    names = list(known)
    return ", ".join(difflib.get_close_matches(name, names, 3) or names[:3])


class FxgradError(Exception):
    """Base class of every error that fxgrad raises on purpose."""


class CaptureError(FxgradError):
    """The model could not be captured as a graph."""


class OtherComputationError(CaptureError):
    """The captured program gives other outputs than the model."""


class RuleTableError(FxgradError):
    """A rule table is malformed; the message names file and row."""


class NoRuleError(FxgradError):
    """Some ops of the model have no row in the rule table; the message lists all of them."""


class NotBalanceableError(FxgradError):
    """A value that can only multiply (softmax weights, say) reaches the output as an addend."""


class InputError(FxgradError):
    """A converted module, or `fxgrad.check`, was called with inputs that do not fit the captured model."""


class ArtefactError(FxgradError):
    """A file is not what `fxgrad.save` or `torch.export.save` wrote, or a converted module cannot be written."""


class ExportError(FxgradError):
    """A converted model or its explainer cannot be exported, or an exported file cannot be run."""


class MissingError(FxgradError, AttributeError):
    """A converted module was asked for an attribute that only the model has. `hasattr` takes it for what it is."""


class IncompleteWarning(UserWarning):
    """The shares of an attribution do not add up to the target's value, and nothing in the call says so."""
