"""One model of an evaluation: load it, convert it, attribute and measure its pictures, one unit of work at a time."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fxgrad.data import Batch, Data, collate
from fxgrad.data.heads import TwoClasses
from fxgrad.data.models import LoadedModel, load_model
from fxgrad.errors import FxgradError, InputError
from fxgrad.evaluate.baselines import BASELINES, drawn
from fxgrad.evaluate.measure import Ruler
from fxgrad.evaluate.methods import Attribute, Attribution, attributed_together, grid_of
from fxgrad.evaluate.plan import Plan
from fxgrad.evaluate.units import Units, fingerprint
from fxgrad.metrics import Dropping, Metric, Removal, Replacing
from fxgrad.module.converted import ConvertedModule
from fxgrad.pipeline import convert

REMOVALS = ("auto", "drop", "zero", "blur")
"""How tokens of pictures are removed."""


class Bench(Units):
    """One loaded model, converted under every policy of the plan, and its pictures."""

    def __init__(
        self,
        plan: Plan,
        data: Data,
        order: Sequence[int],
        methods: Mapping[str, Attribute],
        metrics: Sequence[Metric],
        model: str,
    ) -> None:
        super().__init__(plan, model, data.multilabel)
        self.data, self.order, self.methods, self.metrics = data, order, methods, metrics
        self.loaded = _loaded(plan, model)
        self.fingerprint = fingerprint(self.loaded.model)
        example = self.loaded.example().to(**self.place)
        model_there = _with_classes(self.loaded.model.to(**self.place), example)
        self.plain = convert(model_there, (example,), rules="gradient").requires_grad_(False)
        self.batch = functools.lru_cache(1)(self._batch)

    @functools.cached_property
    def ruler(self) -> Ruler:
        size, grid = self.loaded.preprocess.size, grid_of(self.plain)
        pixels = Replacing(self.plain, (size[1], size[2]), "blur") if self.plan.steps else None
        return Ruler(
            self.metrics,
            removal(self.plain, grid, self.plan.removal),
            pixels,
            self.plan.fractions,
            self.plan.steps,
            self.data.multilabel,
            self.plain,
        )

    def open(self, start: int, stop: int) -> None:
        self.batch(start, stop)

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"removal": self.ruler.tokens.name}

    @property
    def example(self) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        return (self.loaded.example().to(**self.place),), {}

    def named(self, start: int, stop: int) -> tuple[Sequence[str], Sequence[str]]:
        pictures, *_ = self.batch(start, stop)
        return pictures.ids, pictures.groups

    def attributed(
        self, methods: Sequence[str], converted: ConvertedModule, start: int, stop: int
    ) -> Sequence[Attribution | FxgradError]:
        pictures, x, target, _ = self.batch(start, stop)
        return self._attributed(methods, converted, pictures, x, target, start)

    def values(
        self, attributions: Mapping[str, Attribution], policy: str, start: int, stop: int
    ) -> Mapping[str, Mapping[str, list[float]]]:
        pictures, x, target, logits = self.batch(start, stop)
        explain = functools.partial(self._explained, list(attributions), policy, start, stop)
        return self.ruler.measure(pictures, x, target, logits, attributions, explain)

    def _attributed(
        self, methods: Sequence[str], converted: ConvertedModule, pictures: Batch, x: Tensor, target: Tensor, start: int
    ) -> list[Attribution | FxgradError]:
        """The attribution by each method, or why there is none."""
        grid = self.ruler.tokens.grid
        made = {m: drawn(m, pictures, self.loaded.preprocess, grid) for m in methods if m in BASELINES}
        others = [m for m in methods if m not in made]
        chosen = [self.methods[m] for m in others]
        found = attributed_together(chosen, converted, x, target, grid, self.plan.seed + start)
        both: dict[str, Attribution | FxgradError] = {**made, **dict(zip(others, found))}
        return [both[m] for m in methods]

    def _explained(self, methods: Sequence[str], policy: str, start: int, stop: int, x: Tensor) -> Tensor | None:
        """Maps of the first pictures after a change, float64 (methods, rows, H, W); None without a float64 twin."""
        twin = x.dtype is torch.float64 and x.dtype is not self.place["dtype"]
        if twin and self.exact is None:
            return None
        converted = self.exact_under(policy) if twin else self.under(policy)
        pictures, _, target, _ = self.batch(start, stop)
        seen = pictures.first(len(x), x.float().cpu())
        found = self._attributed(methods, converted, seen, x, target[: len(x)], start)
        for one in found:
            if isinstance(one, FxgradError):
                raise one
        return torch.stack([one.pixels.cpu().double() for one in found if not isinstance(one, FxgradError)])

    def _batch(self, start: int, stop: int) -> tuple[Batch, Tensor, Tensor, Tensor]:
        pictures = collate([self.data[i] for i in self.order[start:stop]], self.loaded.preprocess)
        x = pictures.x.to(**self.place)
        with torch.no_grad():
            logits = self.plain(x)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise InputError(f"{self.loaded.name} does not return logits (batch, classes), which evaluate needs.")
        largest = int(pictures.labels.max())
        if self.plan.target == "label" and largest >= logits.shape[1]:
            raise InputError(
                f"{self.plan.data} has a label {largest}, but {self.loaded.name} has {logits.shape[1]} classes. Use a "
                "model of this data, or --target predicted."
            )
        large = pictures.masks.float().mean((1, 2)) >= self.plan.least_area
        pictures = replace(pictures, masks=pictures.masks & large[:, None, None])
        return pictures, x, self.target(pictures.labels.to(x.device), logits), logits


def picture_settings(plan: Plan) -> dict[str, object]:
    """What is noted of a plan for pictures.

    Raises:
        InputError: a setting is for texts.
    """
    if plan.removal not in REMOVALS:
        raise InputError(f"{plan.removal} removes tokens of texts; parts of pictures, {', '.join(REMOVALS)}.")
    return plan.settings


def removal(converted: ConvertedModule, grid: tuple[int, int], how: str = "auto") -> Removal:
    """The removal of a picture's tokens for a model.

    Args:
        converted: the model.
        grid: rows and columns of its patches.
        how: "drop", "zero", "blur", or "auto": drop if the model can run on fewer tokens, else blur.

    Raises:
        InputError: "drop", but the model cannot run on fewer tokens.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
        >>> removal(convert(model, (torch.zeros(2, 1, 4, 4),)), (2, 2), "zero").name
        'set to zero'
    """
    if how in ("zero", "blur"):
        return Replacing(converted, grid, how)
    try:
        return Dropping(converted, grid)
    except InputError as error:
        if how == "drop":
            raise
        blurring = Replacing(converted, grid, "blur")
        blurring.name += f" ({str(error).rstrip('.')})"
        return blurring


def _loaded(plan: Plan, model: str) -> LoadedModel:
    """A model of the plan, which classifies by the plan's prompts, if there are any."""
    loaded = load_model(
        model,
        plan.pretrained,
        checkpoint=plan.checkpoint,
        strip_prefix=plan.strip_prefix,
        num_classes=plan.num_classes,
        input_size=plan.input_size,
        seed=plan.seed,
    )
    if plan.prompts:
        return loaded.prompted(*plan.prompts)
    loaded.refuse_without_prompts()
    return loaded


def _with_classes(model: nn.Module, example: Tensor) -> nn.Module:
    """The model; one with a single logit as one of two classes."""
    with torch.no_grad():
        logits = model(example[:1])
    one = isinstance(logits, Tensor) and logits.shape[1:] == (1,)
    return TwoClasses(model).eval() if one else model
