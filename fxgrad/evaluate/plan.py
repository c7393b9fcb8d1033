"""What is to be evaluated: models, policies, methods, pictures, and how they are measured."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields

from fxgrad import metrics
from fxgrad.errors import InputError
from fxgrad.metrics import FRACTIONS

POLICIES = (
    "gradient",
    "libragrad",
    "libragrad-without-attention",
    "libragrad-without-gated-activation",
    "libragrad-without-normalization",
    "libragrad-without-product",
    "attnlrp",
    "cp-lrp",
)
"""The plain gradient, which the others are compared with, and the presets."""

METRICS = {name: metric.better for name, metric in metrics.METRICS.items()}
"""Every metric, and which way is better."""

ANY = "any"
"""Stands for the policy where a method takes no gradient."""

_CHOICES = {
    "removal": ("auto", "drop", "zero", "blur"),
    "target": ("label", "predicted"),
    "device": ("cpu", "cuda"),
    "dtype": ("float32", "float64", "bfloat16"),
}


@dataclass(frozen=True)
class Plan:
    """One evaluation. Models, policies, methods and the count may grow from run to run: what is there is kept.

    The device is free, too: results of one differ from those of another by rounding.

    Attributes:
        models: as for `load_model`.
        methods: names of attribution methods, or module.path:function of your own.
        policies: names of presets, or paths of policy files.
        data: as for `fxgrad.data.open_data`.
        count: how many pictures, drawn by the seed; None is all.
        target: attribute the logit of the "label", or of the class that is "predicted".
        removal: how tokens are removed: "drop", "zero", "blur", or "auto": dropped where the model can run on fewer
            tokens, else blurred.
        fractions: shares of the tokens that are removed.
        steps: of deletion and insertion; 0 leaves both out.
        options: of methods, such as "integrated_gradients.n_steps=20".
        metrics: module.path:metric of your own, beside fxgrad's.
        chunk: pictures that are measured together, the unit of work.
        dtype: of the model and of its input.
        device: "cpu", or "cuda", where each process of a machine takes the GPU of its number.
        seed: of the choice of pictures, and of methods that draw at random.
        pretrained, checkpoint, input_size: as for `load_model`.

    Raises:
        InputError: a choice that does not exist, or a number that makes no sense.

    Example:
        >>> Plan(("timm:test_vit",), ("gradient",)).settings["chunk"]
        25
    """

    models: tuple[str, ...]
    methods: tuple[str, ...]
    policies: tuple[str, ...] = POLICIES
    data: str = "digits"
    count: int | None = 200
    target: str = "label"
    removal: str = "auto"
    fractions: tuple[float, ...] = FRACTIONS
    steps: int = 5
    options: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    chunk: int = 25
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0
    pretrained: bool = False
    checkpoint: str | None = None
    input_size: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(f"{name} is one of {', '.join(choices)}, not {getattr(self, name)!r}.")
        if not self.models or not self.methods or not self.policies:
            raise InputError("there is nothing to evaluate: name at least one model, one method and one policy.")
        rising = list(self.fractions) == sorted(set(self.fractions))
        if not self.fractions or not rising or not 0 < self.fractions[0] <= self.fractions[-1] < 1:
            raise InputError(f"fractions ascend between 0 and 1, such as 0.1, 0.5, 0.9; not {self.fractions}.")
        if self.chunk < 1 or self.steps < 0 or (self.count is not None and self.count < 1):
            raise InputError("chunk and count are at least 1, and steps at least 0.")

    @property
    def settings(self) -> dict[str, object]:
        """All that a result depends on beside its own key: results of other settings do not mix with these.

        `evaluate` adds the user's own metrics, which are known once they are imported.
        """
        others = {"models", "methods", "policies", "count", "device", "metrics"}
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in others}
        found: dict[str, object] = json.loads(json.dumps(plain))
        return found
