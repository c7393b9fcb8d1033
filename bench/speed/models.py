"""What the speed benchmark runs on: one case per row, by axis.

With FXGRAD_BENCH=quick in the environment every model shrinks to next to nothing: to see that it all runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from bench.speed.results import BAR, BAR_1024, BAR_4096, BAR_TARGETS
from fxgrad.data.models import randomize

QUICK = os.environ.get("FXGRAD_BENCH") == "quick"
PATCH = 16
T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        name: unique; the page finds rows by it.
        axis: which table it belongs to.
        size: where it lies along the axis: tokens, batch, blocks, width, targets.
        kind: what the baselines need to know, one of `bench.speed.baselines.KINDS`.
        make: the model.
        shape: of its input.
        rounds: how often everything is timed.
        against: "all" baselines, those that are written by "hand", or "none" but the plain gradient.
        blocks: how many; 0 where there are no blocks to speak of.
        tokens: how many; 0 where there are none to speak of.
        dtype: of model and input.
    """

    name: str
    axis: str
    size: int
    kind: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    rounds: int = 5
    against: str = "hand"
    blocks: int = 0
    tokens: int = 0
    dtype: torch.dtype = torch.float32

    def build(self, device: str = "cpu") -> tuple[nn.Module, Tensor]:
        """The model, frozen, its zeros made random, and an input.

        Args:
            device: "cpu" or "cuda".
        """
        torch.manual_seed(0)
        model = self.make().eval().requires_grad_(False)
        randomize(model)
        model = model.to(device, self.dtype)
        return model, torch.randn(self.shape).to(device, self.dtype)


@dataclass(frozen=True)
class Shape:
    """Of a vision transformer."""

    width: int
    depth: int
    heads: int


TINY, SMALL, BASE, LARGE = Shape(192, 12, 3), Shape(384, 12, 6), Shape(768, 12, 12), Shape(1024, 24, 16)
NARROW = 128


def vit(shape: Shape, side: int = 14) -> Callable[[], nn.Module]:
    """A timm vision transformer on side x side patches and a class token; all of timm's ViT-S, B, L are this class.

    Args:
        shape: width, depth and heads.
        side: of the image, in patches of 16 pixels.
    """
    return lambda: VisionTransformer(
        img_size=side * PATCH, embed_dim=shape.width, depth=shape.depth, num_heads=shape.heads, num_classes=1000
    )


def llama(sizes: tuple[int, ...], dtype: torch.dtype = torch.float32, *, tied: bool = False) -> nn.Module:
    """A random Llama of transformers; no weight of it is ever made in another dtype.

    Args:
        sizes: width, blocks, heads, heads of keys, width inside, words.
        dtype: of its weights.
        tied: whether the head has the embedding's weights.
    """
    import transformers

    width, blocks, heads, of_keys, inside, words = sizes
    config = transformers.LlamaConfig(
        vocab_size=words, hidden_size=width, intermediate_size=inside, num_hidden_layers=blocks,
        num_attention_heads=heads, num_key_value_heads=of_keys, max_position_embeddings=4096,
        tie_word_embeddings=tied, dtype=dtype,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        return transformers.LlamaForCausalLM(config)  # type: ignore[no-any-return]
    finally:
        torch.set_default_dtype(torch.float32)


def vit_case(
    name: str, axis: str, size: int, shape: Shape, batch: int, side: int = 14, *, rounds: int = 5, against: str = "hand"
) -> Case:
    """A row for a vision transformer; small in quick mode, and `size` with it.

    Args:
        name, axis, size, rounds, against: as `Case` has them.
        shape, side: as `vit` takes them.
        batch: images at once.
    """
    if QUICK:
        small = Shape(max(32, shape.width // 96 * 8), -(-shape.depth // 6), 2)
        batch, side, rounds = min(batch, 4), min(side, 16), 2
        size, shape = {"tokens": side * side, "batch": batch, "depth": small.depth}.get(axis, size), small
    pixels = side * PATCH
    return Case(
        name, axis, size, "vit", vit(shape, side), (batch, 3, pixels, pixels),
        rounds, against, blocks=shape.depth, tokens=side * side,
    )  # fmt: skip


TIMM: dict[str, tuple[str, int, dict[str, object]]] = {
    "Mixer-B/16": ("mixer_b16_224", 2, {"img_size": 64}),
    "Swin-T": ("swin_tiny_patch4_window7_224", 4, {"img_size": 56, "embed_dim": 24, "depths": (1, 1)}),
    "ConvNeXt-T": ("convnext_tiny", 4, {"depths": (1, 1, 1, 1), "dims": (8, 16, 32, 64)}),
    "ResNet-50": ("resnet50", 4, {"layers": (1, 1, 1, 1)}),
}
"""Name on the page -> timm's, images at once, and what makes it small in quick mode."""


def _timm_case(label: str) -> Case:
    name, batch, small = TIMM[label]
    pixels = (56 if label == "Swin-T" else 64) if QUICK else 224
    kind = "mixer" if label.startswith("Mixer") else "vit"
    make: Callable[[], nn.Module] = lambda: timm.create_model(name, **(small if QUICK else {}))  # noqa: E731
    return Case(label, "models", 0, kind, make, (batch, 3, pixels, pixels), 2 if QUICK else 5, "all")


LLAMAS = {
    "Llama-shaped, 3 M": (256, 4, 4, 2, 688),
    "Llama-shaped, 23 M": (512, 8, 8, 4, 1376),
    "Llama-shaped, 140 M": (1024, 12, 16, 8, 2752),
    "Llama-shaped, 710 M": (2048, 16, 32, 8, 5504),
}
"""Name, with the weights of its blocks -> width, blocks, heads, heads of keys and values, width inside."""


def _llama_case(label: str) -> Case:
    import transformers

    width, blocks, heads, groups, inside = LLAMAS[label]
    words, tokens = 4096, 128
    if QUICK:
        width, blocks, heads, groups, inside, words, tokens = width // 8, 2, 4, 2, 64, 30, 8

    def make() -> nn.Module:
        config = transformers.LlamaConfig(
            vocab_size=words, hidden_size=width, intermediate_size=inside, num_hidden_layers=blocks,
            num_attention_heads=heads, num_key_value_heads=groups,
        )  # fmt: skip
        model: nn.Module = transformers.LlamaForCausalLM(config)
        return model

    # captum's rows copy the weights, which the largest are too many for.
    against = "hand" if width == 2048 else "all"
    rounds = 2 if QUICK else 3 if width == 2048 else 5
    return Case(
        label, "models", 0, "llama", make, (1, tokens, width), rounds, against, blocks=blocks, tokens=tokens
    )  # fmt: skip


TWO_BLOCKS = Shape(768, 2, 12)


def cases() -> Iterator[Case]:
    """All rows that are timed alike: a model, its plain gradient, fxgrad's, and the baselines'."""
    yield vit_case(BAR, "bars", 196, BASE, 8, rounds=5, against="all")
    yield vit_case(BAR_1024, "bars", 1024, BASE, 8, 32, rounds=3, against="none")
    yield vit_case(BAR_4096, "bars", 4096, BASE, 1, 64, rounds=3, against="none")
    if not QUICK:
        yield vit_case("ViT-S/16", "models", 0, SMALL, 4, against="all")
        yield vit_case("ViT-B/16", "models", 0, BASE, 1, against="all")
        yield vit_case("ViT-L/16", "models", 0, LARGE, 1, rounds=4)
    yield from map(_timm_case, _few(TIMM, 1))
    yield from map(_llama_case, _few(LLAMAS, 1))
    for side in _few((8, 16, 24, 32, 64)):
        rounds = 9 if side <= 16 else 5 if side <= 32 else 3
        yield vit_case(f"{side * side:,} tokens", "tokens", side * side, TWO_BLOCKS, 1, side, rounds=rounds)
    for batch in _few((1, 2, 4, 8, 16, 32)):
        yield vit_case(
            f"batch {batch}", "batch", batch, TINY, batch, rounds=9 if batch <= 4 else 5 if batch <= 8 else 3
        )
    for depth in DEPTHS:
        yield vit_case(f"{depth} blocks", "depth", depth, Shape(NARROW, depth, 2), 1, rounds=7)


def _few(sizes: Iterable[T], most: int = 2) -> tuple[T, ...]:
    """All of them; in quick mode the first."""
    return tuple(sizes)[: most if QUICK else None]


DEPTHS = (2, 24) if QUICK else (2, 4, 8, 16, 32, 48)
TARGETS = (1, 10) if QUICK else (1, 2, 5, 10, 30, 100)


def targets_case(targets: int) -> Case:
    """The model of a row of many targets."""
    return vit_case(f"{targets} targets", "targets", targets, TINY, 1, rounds=5 if targets <= 10 else 3)


def targets_bar() -> Case:
    """The model on which ten targets have a bar to meet."""
    return vit_case(BAR_TARGETS, "targets of ViT-B", 10, BASE, 8, rounds=2, against="none")
