"""Attribution methods, for any converted model under any policy.

fxgrad.attribute(libra, (x,), target="tabby", method="fullgrad_plus").patches
"""

from fxgrad.methods.attribution import Attribution
from fxgrad.methods.entry import METHODS, attribute
from fxgrad.methods.parts import Anatomy
from fxgrad.methods.search import anatomy
from fxgrad.methods.targets import Contrast, Probability, Similarity, Target, Token

__all__ = [
    "METHODS",
    "Anatomy",
    "Attribution",
    "Contrast",
    "Probability",
    "Similarity",
    "Target",
    "Token",
    "anatomy",
    "attribute",
]
