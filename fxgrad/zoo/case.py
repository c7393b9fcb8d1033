"""A case: one model of the zoo, and how to build it with an input that it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn


class Built(NamedTuple):
    """A model in eval mode with an example.

    Attributes:
        model: float32, on the CPU.
        args, kwargs: the example, a batch of two.
        reduced: how the model was made smaller, in words; "" if it was not.
        through_no_grad: as for `fxgrad.convert`.
    """

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    reduced: str = ""
    through_no_grad: bool = False


@dataclass(frozen=True)
class Case:
    """One model of the zoo. It is sent to another process, so `build` must be picklable.

    Attributes:
        name: package and model, as in "timm:resnet18".
        family: models of one family share their code.
        build: makes the model and its example; a function at the top of a module, or a partial of one.
    """

    name: str
    family: str
    build: Callable[[], Built] = field(compare=False)

    @property
    def package(self) -> str:
        """The package of the model, such as "timm".

        Example:
            >>> Case("timm:resnet18", "resnet", lambda: Built(nn.Identity(), (), {})).package
            'timm'
        """
        return self.name.partition(":")[0]


@dataclass(frozen=True)
class Limits:
    """Limits on the size of a case.

    Attributes:
        parameters: a model with more parameters is reduced to fewer blocks of each sort.
        image_size: an input with more pixels per side is made smaller if the model allows it; None: the suite decides.
    """

    parameters: int = 100_000_000
    image_size: int | None = None
