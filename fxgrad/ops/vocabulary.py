"""The vocabulary of the policies: name -> backward."""

from __future__ import annotations

from fxgrad.ops import attention, normalization, propagation, secants, stops, temperature, twins, weights
from fxgrad.ops.backward import Backward

FAMILIES = (weights, attention, secants, normalization, twins, propagation, temperature, stops)
BACKWARDS: dict[str, Backward] = {b.name: b for family in FAMILIES for b in family.BACKWARDS}
