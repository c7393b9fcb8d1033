"""Attribution methods, for any converted model under any policy.

    fxgrad.attribute(libra, (x,), target="tabby", method="fullgrad_plus").patches

A method is a function of a `Problem` that returns a `Map`; `attribute` takes one of your own, too.
"""

from typing import TYPE_CHECKING

from fxgrad import lazy

if TYPE_CHECKING:
    from fxgrad.methods.attribution import Attribution
    from fxgrad.methods.definition import Map, Method, method
    from fxgrad.methods.entry import BLACK_BOX, METHODS, SHARING, attribute
    from fxgrad.methods.parts import Anatomy
    from fxgrad.methods.problem import Problem
    from fxgrad.methods.search import anatomy
    from fxgrad.methods.targets import Contrast, Finer, Probability, Similarity, Target, Token

__all__ = [
    "BLACK_BOX",
    "METHODS",
    "SHARING",
    "Anatomy",
    "Attribution",
    "Contrast",
    "Finer",
    "Map",
    "Method",
    "Probability",
    "Problem",
    "Similarity",
    "Target",
    "Token",
    "anatomy",
    "attribute",
    "method",
]

_HOMES = {
    "Attribution": "attribution",
    **dict.fromkeys(("Map", "Method", "method"), "definition"),
    **dict.fromkeys(("BLACK_BOX", "METHODS", "SHARING", "attribute"), "entry"),
    "Anatomy": "parts",
    "Problem": "problem",
    "anatomy": "search",
    **dict.fromkeys(("Contrast", "Finer", "Probability", "Similarity", "Target", "Token"), "targets"),
}
__getattr__, __dir__ = lazy.names(__name__, _HOMES)
