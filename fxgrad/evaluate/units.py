"""The units of work of one model: examples under a policy, attributed and measured by all methods together."""

from __future__ import annotations

import copy
import functools
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxgrad.errors import FxgradError, InputError, first_line
from fxgrad.evaluate.plan import ANY, Plan
from fxgrad.evaluate.store import Store
from fxgrad.module.converted import ConvertedModule

Found = tuple[Mapping[str, Mapping[str, list[float]]], Mapping[str, str]]
"""Method -> metric -> values, and method -> why it cannot be used."""


@dataclass(frozen=True)
class Unit:
    """One chunk of pictures, or texts, under one policy, and the methods still to be measured on it."""

    model: str
    policy: str
    methods: tuple[str, ...]
    start: int
    stop: int


class Units(ABC):
    """What runs the units of one model: it is loaded, and converted under every policy of the plan.

    Args:
        plan: the plan.
        model: one of its models.
        multilabel: as in `Data`.

    Attributes:
        plain: the model under the plain gradient.
        fingerprint: of its weights.
        place: where the model is, and in which dtype.
        without_twin: why the model has no twin in float64; "" if it has one, or none was asked for.
    """

    plain: ConvertedModule
    fingerprint: str

    def __init__(self, plan: Plan, model: str, multilabel: bool) -> None:
        self.plan, self.model, self.multilabel = plan, model, multilabel
        # Each process takes the GPU of its local rank.
        device = "cpu" if plan.device == "cpu" else f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        self.place: dict[str, Any] = {"device": torch.device(device), "dtype": getattr(torch, plan.dtype)}
        self.without_twin = ""
        self.under = functools.cache(self._under)
        self.exact_under = functools.cache(self._exact_under)
        self.first_alike = functools.cache(self._first_alike)
        self.measured = functools.lru_cache(len(plan.policies) + 1)(self._measured)

    @abstractmethod
    def open(self, start: int, stop: int) -> None:
        """Read the examples."""

    @property
    @abstractmethod
    def facts(self) -> Mapping[str, Any]:
        """What is to be noted of the model: how its tokens are removed, and the like."""

    @property
    @abstractmethod
    def example(self) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Inputs of the model in its place, (args, kwargs)."""

    @abstractmethod
    def named(self, start: int, stop: int) -> tuple[Sequence[str], Sequence[str]]:
        """(ids, groups) of the examples."""

    @abstractmethod
    def attributed(self, methods: Sequence[str], converted: ConvertedModule, start: int, stop: int) -> Sequence[Any]:
        """The attribution by each method, or the error that says why there is none."""

    @abstractmethod
    def values(
        self, attributions: Mapping[str, Any], policy: str, start: int, stop: int
    ) -> Mapping[str, Mapping[str, list[float]]]:
        """Method -> metric -> one value for each example."""

    def run(self, unit: Unit, store: Store) -> None:
        """Measure a unit and store its results."""
        self.open(unit.start, unit.stop)
        for fact, value in self.facts.items():
            store.note(f"{fact} of {unit.model}", value)
        measured, refused = self.measured(unit.start, unit.stop, self.first_alike(unit.policy), unit.methods)
        if self.without_twin:
            store.note(f"no float64 of {unit.model}", self.without_twin)
        for method, reason in refused.items():
            store.refuse(unit.model, unit.policy, method, reason)
        ids, groups = self.named(unit.start, unit.stop)
        store.add(unit.model, unit.policy, measured, list(ids), unit.start, unit.stop, groups)

    def _measured(self, start: int, stop: int, policy: str, methods: tuple[str, ...]) -> Found:
        found = self.attributed(methods, self.under(policy), start, stop)
        attributions = {m: one for m, one in zip(methods, found) if not isinstance(one, FxgradError)}
        refused = {m: first_line(one) for m, one in zip(methods, found) if isinstance(one, FxgradError)}
        return (self.values(attributions, policy, start, stop) if attributions else {}), refused

    @functools.cached_property
    def exact(self) -> ConvertedModule | None:
        """The model in float64; None if its own code computes in another dtype and cannot run so."""
        twin = copy.deepcopy(self.plain).double()
        try:
            with torch.no_grad():
                args, kwargs = self.example
                twin(*(x.double() for x in args), **kwargs)
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

    def target(self, labels: Tensor, logits: Tensor) -> Tensor:
        """The class that is attributed, int64 (batch,).

        Args:
            labels: the label of each example; read only if the plan's target is the label.
            logits: (batch, classes).

        Raises:
            InputError: the plan's value is not one of this model.
        """
        classes = logits.shape[1]
        if self.plan.value == "margin" and classes != 2:
            raise InputError(f"a margin is of two classes, and {self.model} has {classes}. Use --value logit.")
        if self.plan.value == "probability" and self.multilabel:
            raise InputError(f"the classes of {self.plan.data} are independent: use --value logit, not probability.")
        if self.plan.target == "label":
            return labels
        first = logits.argmax(1)
        if self.plan.target == "predicted":
            return first
        return logits.scatter(1, first[:, None], -torch.inf).argmax(1)


def fingerprint(model: nn.Module) -> str:
    """A digest of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
