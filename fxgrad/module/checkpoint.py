"""Activation checkpointing per block: values inside a block are not kept; the backward runs the block again."""

from __future__ import annotations

import torch
from torch import fx, nn
from torch.fx.passes.split_module import split_module
from torch.utils.checkpoint import checkpoint

from fxgrad.errors import InputError
from fxgrad.graph.places import block_of, place_of


class _Recomputed(nn.Module):
    """A piece of a program that keeps only its inputs and runs again in the backward pass."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, *args: object) -> object:
        if not torch.is_grad_enabled():
            return self.body.forward(*args)
        return checkpoint(self.body.forward, *args, use_reentrant=False, preserve_rng_state=False)


def checkpointed(program: fx.GraphModule) -> nn.Module:
    """Split a program between its blocks; values inside a block are not kept.

    Args:
        program: a rewritten program, its nodes with the metadata of capture.

    Returns:
        A module with the same inputs and outputs.

    Raises:
        InputError: no part of the program belongs to a numbered block.

    Example:
        >>> import fxgrad
        >>> model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(2))).eval()
        >>> libra = fxgrad.convert(model, (torch.zeros(2, 3),))
        >>> [type(m).__name__ for m in checkpointed(libra.program).children()]
        ['_Recomputed', '_Recomputed']

    Source: Chen et al., Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174.
    """
    part_of: dict[fx.Node, int] = {}
    blocks: list[str] = []
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        # A node without a module path belongs to the block of the node before it.
        path = place_of(node).module_path
        block = block_of(path) if path or not blocks else blocks[-1]
        if not blocks or block != blocks[-1]:
            blocks.append(block)
        part_of[node] = len(blocks) - 1
    if not any(blocks):
        raise InputError("the model has no numbered blocks (as blocks.0, blocks.1), so there is nothing to checkpoint.")
    split = split_module(program, program, part_of.__getitem__, keep_original_order=True)
    for index, block in enumerate(blocks):
        name = f"submod_{index}"
        if block:
            setattr(split, name, _Recomputed(split.get_submodule(name)))
    return split
