"""Forward-identical ops with backwards of their own: what a rewritten graph calls.

Each is called as `f(op, detail, *args, **kwargs)`: the original op, a description of the backward, the op's own
arguments. It returns the op's result, bit for bit.
"""

from fxgrad.ops.attention import value_only
from fxgrad.ops.composed import TWINS
from fxgrad.ops.normalization import Layout, hold_scale
from fxgrad.ops.pieces import piece
from fxgrad.ops.refused import refuse
from fxgrad.ops.repairs import packed, relaid
from fxgrad.ops.rows import Rows, rows_of
from fxgrad.ops.secants import rescale, secant, through
from fxgrad.ops.series import Taylor, reference, root_of, taylor
from fxgrad.ops.stops import constant
from fxgrad.ops.twins import Twin
from fxgrad.ops.weights import root, weighted

__all__ = [
    "TWINS",
    "Layout",
    "Rows",
    "Taylor",
    "Twin",
    "constant",
    "hold_scale",
    "packed",
    "piece",
    "reference",
    "refuse",
    "relaid",
    "rescale",
    "root",
    "root_of",
    "rows_of",
    "secant",
    "taylor",
    "through",
    "value_only",
    "weighted",
]
