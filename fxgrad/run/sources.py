"""What constants contribute: at every node with offset b and cotangent g, the elementwise product g * b.

An offset is computed from the original op, independently of any backward, so that no fault of a backward can hide in
it. It uses tensor operations only, without a branch on values, so that `make_fx` can trace it.

Source: FullGrad (Srinivas & Fleuret, NeurIPS 2019, arXiv:1905.00780), eq. 1, applied to every node.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fxgrad.classify.decision import Decision
from fxgrad.graph.replay import Replay
from fxgrad.module.converted import ConvertedModule
from fxgrad.ops.backward import Pairs


class Offsets:
    """The offsets b of a run's nodes, computed by each node's backward from the captured op and this run's values.

    Args:
        converted: what `fxgrad.convert` returned.
        values: node name -> its value in one run of the program; at least the nodes that `reads` names.

    Attributes:
        original: the captured graph at these values.
    """

    def __init__(self, converted: ConvertedModule, values: Mapping[str, Any]) -> None:
        self.decisions = converted.classified.decisions
        self.original = Replay(converted.classified.captured.graph, values)

    def carrying(self, decision: Decision) -> list[str]:
        """Names of the operands that may get a cotangent: live nodes and attributed inputs."""
        names = dict.fromkeys(str(o.value) for o in decision.data)
        return [n for n in names if n not in self.decisions or self.decisions[n].live]

    def of(self, decision: Decision, g: Any) -> Pairs:
        """Pairs (g, b) of a node, given its cotangent g: the sum of <g, b> is what its constants contribute."""
        if not decision.keeps:
            return []
        return decision.backward.offset(decision, self.original, self.carrying(decision), g)


def reads(converted: ConvertedModule) -> set[str]:
    """Names of the nodes whose values the offsets are computed from."""
    nodes = {n.name: n for n in converted.classified.captured.graph.nodes}
    decisions = [d for d in converted.classified.decisions.values() if d.keeps]
    own = [nodes[name] for d in decisions for name in d.backward.reads(d)]
    return {n.name for node in own for n in (node, *node.all_input_nodes)}


def products(pairs: Pairs) -> tuple[Tensor, ...]:
    """g * b of every pair, added up to one tensor if all shapes are equal; the real part of complex ones.

    Of half precision, in float32: what adds up to a value is not rounded before it is added.
    """
    flat: list[tuple[Tensor, Tensor]] = []
    for g, b in pairs:
        items = zip(g, b) if isinstance(b, (list, tuple)) else [(g, b)]
        flat += [(gi, bi) for gi, bi in items if gi is not None]
    parts = [(g.conj() * b).real if b.is_complex() else torch.where(g == 0, 0, wide(g) * b) for g, b in flat]
    alike = all(part.shape == parts[0].shape for part in parts)
    return (torch.stack(parts).sum(0),) if alike and len(parts) > 1 else tuple(parts)


def wide(tensor: Tensor) -> Tensor:
    """The tensor, of half precision as float32.

    Example:
        >>> wide(torch.zeros(1, dtype=torch.bfloat16)).dtype, wide(torch.zeros(1, dtype=torch.float64)).dtype
        (torch.float32, torch.float64)
    """
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf
