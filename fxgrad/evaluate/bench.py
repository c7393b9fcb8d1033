"""One model of an evaluation: load it, convert it, attribute and measure its pictures, one unit of work at a time."""

from __future__ import annotations

import copy
import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fxgrad.data import Batch, Data, collate
from fxgrad.data.heads import TwoClasses
from fxgrad.data.models import LoadedModel, load_model
from fxgrad.errors import FxgradError, InputError, first_line
from fxgrad.evaluate.baselines import BASELINES, drawn
from fxgrad.evaluate.measure import Ruler
from fxgrad.evaluate.methods import Attribute, Attribution, attributed_together, grid_of
from fxgrad.evaluate.plan import ANY, Plan
from fxgrad.evaluate.store import Store
from fxgrad.metrics import Dropping, Metric, Removal, Replacing
from fxgrad.module.converted import ConvertedModule
from fxgrad.pipeline import convert

Found = tuple[Mapping[str, Mapping[str, list[float]]], Mapping[str, str]]
"""Method -> metric -> values, and method -> why it cannot be used."""


@dataclass(frozen=True)
class Unit:
    """One chunk of pictures under one policy, and the methods still to be measured on it."""

    model: str
    policy: str
    methods: tuple[str, ...]
    start: int
    stop: int


class Bench:
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
        self.plan, self.data, self.order, self.methods, self.metrics = plan, data, order, methods, metrics
        self.loaded = _loaded(plan, model)
        # Each process takes the GPU of its local rank.
        device = "cpu" if plan.device == "cpu" else f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        self.place: dict[str, Any] = {"device": torch.device(device), "dtype": getattr(torch, plan.dtype)}
        self.fingerprint = _fingerprint(self.loaded.model)
        example = self.loaded.example().to(**self.place)
        model_there = _with_classes(self.loaded.model.to(**self.place), example)
        self.plain = convert(model_there, (example,), rules="gradient").requires_grad_(False)
        self.without_twin = ""
        self.under = functools.cache(self._under)
        self.exact_under = functools.cache(self._exact_under)
        self.first_alike = functools.cache(self._first_alike)
        self.batch = functools.lru_cache(1)(self._batch)
        self.measured = functools.lru_cache(len(plan.policies) + 1)(self._measured)

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

    def run(self, unit: Unit, store: Store) -> None:
        """Measure a unit and store its results."""
        store.note(f"removal of {unit.model}", self.ruler.tokens.name)
        pictures, *_ = self.batch(unit.start, unit.stop)
        measured, refused = self.measured(unit.start, unit.stop, self.first_alike(unit.policy), unit.methods)
        if self.without_twin:
            store.note(f"no float64 of {unit.model}", self.without_twin)
        for method, reason in refused.items():
            store.refuse(unit.model, unit.policy, method, reason)
        store.add(unit.model, unit.policy, measured, list(pictures.ids), unit.start, unit.stop, pictures.groups)

    def _measured(self, start: int, stop: int, policy: str, methods: tuple[str, ...]) -> Found:
        pictures, x, target, logits = self.batch(start, stop)
        converted = self.under(policy)
        found = self._attributed(methods, converted, pictures, x, target, start)
        attributions = {m: one for m, one in zip(methods, found) if not isinstance(one, FxgradError)}
        refused = {m: first_line(one) for m, one in zip(methods, found) if isinstance(one, FxgradError)}
        if not attributions:
            return {}, refused
        explain = functools.partial(self._explained, list(attributions), policy, start, stop)
        return self.ruler.measure(pictures, x, target, logits, attributions, explain), refused

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

    @functools.cached_property
    def exact(self) -> ConvertedModule | None:
        """The model in float64; None if its own code computes in another dtype and cannot run so."""
        twin = copy.deepcopy(self.plain).double()
        try:
            with torch.no_grad():
                twin(self.loaded.example().to(self.place["device"], torch.float64))
        except (RuntimeError, FxgradError) as error:
            self.without_twin = first_line(error)
            return None
        return twin

    def _exact_under(self, policy: str) -> ConvertedModule:
        assert self.exact is not None
        return self.exact.under(policy)

    def _first_alike(self, policy: str) -> str:
        """The first of the plan's policies that gives every node of this model the same rule."""
        if policy == ANY:
            return "gradient"
        decisions = self.under(policy).classified.decisions
        return next(p for p in self.plan.policies if self.under(p).classified.decisions == decisions)

    def _under(self, policy: str) -> ConvertedModule:
        return self.plain.under(policy)

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
        return pictures, x, self._target(pictures.labels.to(x.device), logits), logits

    def _target(self, labels: Tensor, logits: Tensor) -> Tensor:
        """The class that is attributed, int64 (batch,)."""
        classes = logits.shape[1]
        if self.plan.value == "margin" and classes != 2:
            raise InputError(f"a margin is of two classes, and {self.loaded.name} has {classes}. Use --value logit.")
        if self.plan.value == "probability" and self.data.multilabel:
            raise InputError(f"the classes of {self.plan.data} are independent: use --value logit, not probability.")
        if self.plan.target == "label":
            return labels
        first = logits.argmax(1)
        if self.plan.target == "predicted":
            return first
        return logits.scatter(1, first[:, None], -torch.inf).argmax(1)


def removal(converted: ConvertedModule, grid: tuple[int, int], how: str = "auto") -> Removal:
    """The removal of tokens for a model.

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


def _fingerprint(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
