"""What the command line asks for in MODEL, and what a source of models gives back."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from fxgrad.data.pictures import Preprocessing, Size
from fxgrad.errors import CaptureError

SOURCES = ("timm", "torchvision", "hf", "open_clip")
"""The packages that models are taken from by name; any other source is a module with a factory in it."""
FORMS = "timm:NAME, torchvision:NAME, hf:NAME, open_clip:NAME, or module.path:factory"


@dataclass(frozen=True)
class Wanted:
    """A model that is asked for.

    Attributes:
        spec: as it was written.
        source: what stands ahead of the first colon.
        name: what stands behind it, without options.
        options: arguments for the source's own function, by name.
        pretrained: the source's own weights, instead of random ones.
        input_size: (channels, height, width); None: the model's own.
    """

    spec: str
    source: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    input_size: Size | None = None

    def without(self, *options: str) -> Wanted:
        """The same without some of its options."""
        return replace(self, options={name: value for name, value in self.options.items() if name not in options})

    def refuse(self, **options: str) -> None:
        """Raise `CaptureError` if it has one of these options, with what to write instead."""
        for name, instead in options.items():
            if name in self.options:
                raise CaptureError(f"{self.spec}: {name} is no option here. {instead}")


@dataclass(frozen=True)
class Built:
    """A model as its source built it, on the CPU.

    Attributes:
        model: from pictures (batch, C, H, W) to logits or embeddings.
        preprocess: its preprocessing.
        weights: where the weights come from, in words.
        class_names: one per output; None if unknown.
        holder: the module whose state_dict a checkpoint of this model has; None: the model itself.
    """

    model: nn.Module
    preprocess: Preprocessing
    weights: str
    class_names: tuple[str, ...] | None = None
    holder: nn.Module | None = None


Source = Callable[[Wanted], Built]


def wanted_of(spec: str) -> Wanted:
    """Read a spec: SOURCE:NAME, or with options SOURCE:NAME?OPTION=VALUE&OPTION=VALUE.

    A value is a Python literal where it is one, else text.

    Raises:
        CaptureError: it is none.

    Example:
        >>> wanted = wanted_of("timm:vit_tiny_patch16_224?img_size=384&global_pool=avg")
        >>> wanted.source, wanted.name, wanted.options
        ('timm', 'vit_tiny_patch16_224', {'img_size': 384, 'global_pool': 'avg'})
    """
    path, mark, query = spec.partition("?")
    source, _, name = path.partition(":")
    if not source or not name:
        raise CaptureError(f"MODEL is {FORMS}, such as timm:resnet18; {spec!r} is none of these.{_near(path)}")
    options: dict[str, Any] = {}
    for part in query.split("&") if mark else ():
        option, is_, value = part.partition("=")
        if not option.isidentifier() or not is_ or option in options:
            raise CaptureError(
                f"{spec}: options follow the name as ?OPTION=VALUE&OPTION=VALUE, each once, as in "
                f"timm:vit_tiny_patch16_224?img_size=384&num_classes=37; {part!r} is none. Quote it for the shell."
            )
        options[option] = _value(value)
    return Wanted(spec, source, name, options)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _near(path: str) -> str:
    """What a name without a source may have meant."""
    return f" Try timm:{path}, or torchvision:{path}." if path.isidentifier() else ""
