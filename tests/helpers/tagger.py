"""A small model on token ids, with what such models have."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Tagger(nn.Module):
    """Token, type and position embeddings, a mask, a block, and logits by the tied token embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.types, self.positions = nn.Embedding(11, 8), nn.Embedding(2, 8), nn.Embedding(9, 8)
        self.norm = nn.LayerNorm(8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True)

    def mix(self, words: Tensor, types: Tensor, mask: Tensor) -> Tensor:
        places = mask.cumsum(1) - 1  # computed, so no token: its embedding is a constant
        x = self.norm(words + types + self.positions(places.clamp(min=0)))
        return nn.functional.linear(self.block(x, src_key_padding_mask=mask == 0), self.words.weight)

    def forward(self, ids: Tensor, types: Tensor, mask: Tensor) -> Tensor:
        return self.mix(self.words(ids), self.types(types), mask)


def tagger() -> tuple[Tagger, tuple[Tensor, Tensor, Tensor]]:
    torch.manual_seed(0)
    ids, types = torch.randint(11, (3, 6)), torch.randint(2, (3, 6))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return Tagger().double().eval(), (ids, types, mask)
