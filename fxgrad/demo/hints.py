"""What a trained model gives to others: weights where they fit, and hints: its inner tokens as training targets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Tokens:
    """A context manager that records the outputs of a model's middle block and of its last block.

    Args:
        model: a model with `blocks`, or with `visual.blocks` such as CLIP.

    Attributes:
        found: the two outputs of the last forward pass, each float32 (N, T, W), class token included.

    Example:
        >>> from fxgrad.demo.models import vit_tiny
        >>> model = vit_tiny(weights=False)
        >>> with Tokens(model) as tokens:
        ...     _ = model(torch.zeros(1, 1, 48, 48))
        >>> [tuple(t.shape) for t in tokens.found]
        [(1, 65, 32), (1, 65, 32)]
    """

    def __init__(self, model: nn.Module) -> None:
        self.blocks = list(_tower(model).blocks)
        self.found: list[Tensor] = []

    def __enter__(self) -> Tokens:
        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self.found = [*self.found[-1:], output]

        depth = len(self.blocks)
        self._hooks = [self.blocks[i].register_forward_hook(keep) for i in ((depth - 1) // 2, depth - 1)]
        return self

    def __exit__(self, *_exception: object) -> None:
        for hook in self._hooks:
            hook.remove()


def _tower(model: nn.Module) -> Any:
    """The submodule that reads pictures."""
    return getattr(model, "visual", model)


def width(model: nn.Module) -> int:
    """The width of a demo model's tokens."""
    return int(_tower(model).num_features)


@torch.no_grad()
def inherit(model: nn.Module, teacher: nn.Module) -> float:
    """Copy the teacher's parameters to a model's parameters of the same name and shape.

    Positions are copied without the class token's; the grey patch embedding is copied to every colour.

    Returns:
        The share of the model's parameters that was copied.

    Example:
        >>> from fxgrad.demo.models import deit3, vit
        >>> round(inherit(deit3(weights=False), vit(weights=False)), 3)
        0.998
    """
    copied = 0
    given = teacher.state_dict()
    for name, own in _tower(model).state_dict().items():
        theirs = given.get(name)
        if theirs is None:
            continue
        if name == "pos_embed":
            theirs = theirs[:, -own.shape[1] :]
        if name == "patch_embed.proj.weight" and own.shape[1] > 1:
            theirs = theirs.expand(-1, own.shape[1], -1, -1) / own.shape[1]
        if own.shape == theirs.shape:
            own.copy_(theirs)
            copied += own.numel()
    return copied / sum(p.numel() for p in model.parameters())


@torch.no_grad()
def hints(teacher: nn.Module, pixels: Tensor) -> Tensor:
    """The teacher's tokens for pictures, uint8 (N, C, 48, 48): float16 (N, 2, 64, W), each of mean 0 and variance 1."""
    rows = []
    with Tokens(teacher) as tokens:
        for chunk in torch.split(pixels, 250):
            # The brightest channel of a coloured canvas is the grey canvas, except for green ink.
            teacher(chunk.amax(1, keepdim=True).float() / 127.5 - 1)
            rows.append(torch.stack([F.layer_norm(t, t.shape[-1:])[:, -64:] for t in tokens.found], 1).half())
    return torch.cat(rows)


class Adapters(nn.Module):
    """Maps a student's tokens to the teacher's: one linear map for each of the two blocks."""

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Sequential(nn.LayerNorm(student), nn.Linear(student, teacher)) for _ in range(2))

    def forward(self, tokens: list[Tensor], wanted: Tensor) -> Tensor:
        """The distance of tokens from the hints: mean of 1 - cosine, over tokens and both blocks.

        Args:
            tokens: the student's tokens, two of (N, T, student width); those in excess of a square number are class
                tokens and come first.
            wanted: the hints (N, 2, 64, teacher width); averaged over cells if the student has fewer than 64 patches.
        """
        loss = torch.zeros(())
        for adapter, own, hint in zip(self.maps, tokens, wanted.float().unbind(1)):
            side = int(own.shape[1] ** 0.5)
            grid = F.adaptive_avg_pool2d(hint.mT.reshape(*hint.mT.shape[:2], 8, 8), side).flatten(2).mT
            loss = loss + (1 - F.cosine_similarity(adapter(own[:, -side * side :]), grid, dim=-1)).mean()
        return loss / 2
