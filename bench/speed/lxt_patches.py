"""lxt's patches, found once, and in place only where they are wanted.

lxt (efficient mode) patches classes for the whole process, and one policy at a time.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any
from unittest import mock

import transformers.pytorch_utils
from torch import nn

Patch = tuple[Any, str, Any]
"""A class or module, the name of an attribute, its value."""
_MISSING = object()


class AttentionFunctions(dict):  # type: ignore[type-arg]
    """lxt leaves a plain dict where transformers 5 wants this method."""

    get_interface = dict.get


def lxt_patches(policy: str, kind: str, model: nn.Module) -> list[Patch]:
    """What lxt's monkey_patch sets for a model; nothing stays set.

    Args:
        policy: "attnlrp" or "cp-lrp".
        kind: one of `KINDS`.
        model: of that kind; asked for the module that it comes from.

    Returns:
        Its patches of classes, and of the module that the model comes from: what `in_place` takes.

    Raises:
        ValueError: lxt's own, for a model that it has no map for.
        NotImplementedError: lxt has a map for the model, but not for this policy.

    Example:
        >>> from torchvision.models import VisionTransformer
        >>> model = VisionTransformer(8, 4, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8)
        >>> [name for _, name, _ in lxt_patches("cp-lrp", "torchvision-vit", model)].count("forward")
        3
    """
    with warnings.catch_warnings(), stand_ins():
        warnings.simplefilter("ignore")
        from lxt.efficient import core, models, monkey_patch

    source = sys.modules[type(model).__module__]
    core.get_default_map(source)  # raises where there is none
    maps = models.llama if kind == "llama" else models.vit_torch
    wanted = getattr(maps, {"attnlrp": "attnLRP", "cp-lrp": "cp_LRP"}[policy], None)
    if wanted is None:
        raise NotImplementedError(f"lxt has no map for {policy} in {source.__name__}")

    targets = {*wanted, source}
    before = {(target, name): value for target in targets for name, value in vars(target).items()}
    registry = getattr(source, "ALL_ATTENTION_FUNCTIONS", None)
    if registry is not None:
        # A registry of its own: the map for CP-LRP changes what it finds, which every model shares.
        source.ALL_ATTENTION_FUNCTIONS = AttentionFunctions(registry)  # type: ignore[attr-defined]
    try:
        monkey_patch(source, wanted)
        if registry is not None:
            source.ALL_ATTENTION_FUNCTIONS = AttentionFunctions(source.ALL_ATTENTION_FUNCTIONS)  # type: ignore[attr-defined]
    finally:
        after = [(target, name, value) for target in targets for name, value in vars(target).items()]
        patches = [(t, n, v) for t, n, v in after if before.get((t, n), _MISSING) is not v]
        _restore([(t, n, before.get((t, n), _MISSING)) for t, n, _ in patches])
    return patches


@contextlib.contextmanager
def in_place(patches: Sequence[Patch]) -> Iterator[None]:
    """Set attributes for the length of a `with` block.

    Args:
        patches: as `lxt_patches` returns them. Afterwards every attribute is what it was, or gone.

    Example:
        >>> with in_place([(AttentionFunctions, "reason", "none")]):
        ...     AttentionFunctions.reason
        'none'
        >>> hasattr(AttentionFunctions, "reason")
        False
    """
    before = [(target, name, vars(target).get(name, _MISSING)) for target, name, _ in patches]
    try:
        _restore(patches)
        yield
    finally:
        _restore(before)


def _restore(patches: Sequence[Patch]) -> None:
    for target, name, value in patches:
        if value is _MISSING:
            delattr(target, name)
        else:
            setattr(target, name, value)


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """For what lxt's copy of BERT imports of names that transformers 5 has dropped; nothing here calls them."""
    masks = ModuleType("transformers.modeling_attn_mask_utils")
    masks._prepare_4d_attention_mask_for_sdpa = None  # type: ignore[attr-defined]
    masks._prepare_4d_causal_attention_mask_for_sdpa = None  # type: ignore[attr-defined]
    original = sys.modules.get(masks.__name__)
    sys.modules[masks.__name__] = masks
    try:
        with mock.patch.object(transformers.pytorch_utils, "find_pruneable_heads_and_indices", None, create=True):
            yield
    finally:
        del sys.modules[masks.__name__]
        if original is not None:
            sys.modules[masks.__name__] = original
