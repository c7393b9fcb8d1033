"""What is to be evaluated: models, policies, methods, pictures, and how they are measured."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields

from fxgrad import metrics
from fxgrad.data.ordering import SHUFFLES
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
"""The plain gradient, the baseline of comparisons, and those that are evaluated if nothing else is asked for."""

METRICS = {name: metric.better for name, metric in metrics.METRICS.items()}
"""Metric -> "higher" or "lower", whichever is better."""

REMOVALS = ("auto", "drop", "zero", "blur", "hide", "mask", "pad")
"""How tokens are removed: of pictures the first four; of texts the first two and the last three."""

ANY = "any"
"""The policy's name for methods that take no gradient."""

_CHOICES = {
    "removal": REMOVALS,
    "target": ("label", "predicted", "second"),
    "value": ("logit", "probability", "margin"),
    "maps": ("linear", "cubic"),
    "shuffle": tuple(SHUFFLES),
    "device": ("cpu", "cuda"),
    "dtype": ("float32", "float64", "bfloat16"),
}

_SELDOM = {
    *("shuffle", "ids", "mode", "value", "maps", "least_area", "measures", "strip_prefix", "num_classes", "prompts"),
}
"""Settings that are noted only where they are not the default, so that the notes of most runs are short."""


@dataclass(frozen=True)
class Plan:
    """One evaluation, of pictures or of texts. Models, policies, methods and the count
    may grow from run to run: earlier results are kept.

    The device may change, too: it changes results by rounding only.

    Attributes:
        models: as for `load_model`; with texts, as for `load_language_model`.
        methods: names of attribution methods, or module.path:function for your own.
        policies: names of presets, or paths of policy files.
        data: as for `fxgrad.data.open_data`.
        count: number of pictures, drawn by the seed; None for all.
        shuffle: how the seed draws pictures, as for `fxgrad.data.order`.
        ids: a file with the ids of the pictures to take, instead of a drawn choice; None: all may be drawn.
        mode: take only pictures of this mode of Pillow's, such as "RGB"; None: of any.
        target: attribute the "label", the "predicted" class, or the "second" likeliest.
        value: the value that is attributed: the target's "logit"; its "probability", the softmax; or its "margin" over
            the other of two classes.
        maps: how a map of patches becomes one of pixels, "linear" or "cubic" along each axis.
        least_area: masks that cover a smaller share of the model's input count as none.
        removal: how tokens are removed: "drop", "zero", "blur", or "auto": drop if the model can run on fewer tokens,
            else blur. Of texts: "drop", "hide" from the attention, replace by the "mask" or "pad" token, or "auto": the
            first of drop, hide and mask that the model can do.
        fractions: the shares of the tokens to remove; from 0 on, the area has the unmasked picture, too.
        steps: steps of deletion and insertion; 0 leaves both out.
        options: options of methods, such as "integrated_gradients.n_steps=20".
        measures: patterns of names of metrics to measure, such as "srg_*"; () for all.
        metrics: metrics in addition to those that are always measured: of `fxgrad.metrics.OPTIONAL`, or
            module.path:metric for your own.
        chunk: pictures, or texts, that are measured together, the unit of work.
        dtype: dtype of the model and of its input.
        device: "cpu", or "cuda", where each process takes the GPU of its local rank.
        seed: seed of the choice of pictures, and of random methods.
        pretrained, checkpoint, strip_prefix, num_classes, input_size: as for `load_model`.
        prompts: texts for models that classify by them, one for each label.

    Raises:
        InputError: an unknown choice, or a number out of range.

    Example:
        >>> Plan(("timm:test_vit",), ("gradient",)).settings["chunk"]
        25
    """

    models: tuple[str, ...]
    methods: tuple[str, ...]
    policies: tuple[str, ...] = POLICIES
    data: str = "digits"
    count: int | None = 200
    shuffle: str = "torch"
    ids: str | None = None
    mode: str | None = None
    target: str = "label"
    value: str = "logit"
    maps: str = "linear"
    least_area: float = 0.0
    removal: str = "auto"
    fractions: tuple[float, ...] = FRACTIONS
    steps: int = 5
    options: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    chunk: int = 25
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0
    pretrained: bool = False
    checkpoint: str | None = None
    strip_prefix: str = ""
    num_classes: int | None = None
    input_size: tuple[int, int, int] | None = None
    prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(f"{name} is one of {', '.join(choices)}, not {getattr(self, name)!r}.")
        if not self.models or not self.methods or not self.policies:
            raise InputError("there is nothing to evaluate: name at least one model, one method and one policy.")
        rising = list(self.fractions) == sorted(set(self.fractions))
        if not self.fractions or not rising or not 0 <= self.fractions[0] <= self.fractions[-1] < 1:
            raise InputError(
                f"fractions ascend between 0 and 1, 0 included, such as 0.1, 0.5, 0.9; not {self.fractions}."
            )
        if self.chunk < 1 or self.steps < 0 or (self.count is not None and self.count < 1):
            raise InputError("chunk and count are at least 1, and steps at least 0.")
        if not 0 <= self.least_area < 1:
            raise InputError(f"least_area is a share of the picture, such as 0.05, not {self.least_area}.")
        if len(self.prompts) == 1:
            raise InputError("one prompt is no choice: give one for each label, at least two.")

    @property
    def settings(self) -> dict[str, object]:
        """Everything that a result depends on except its own key; one folder has results of one such dict only.

        `evaluate` adds the user's own metrics once they are imported. Some are noted only where they are not the
        default.
        """
        others = {"models", "methods", "policies", "count", "device", "metrics"}
        plain = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in others and not (f.name in _SELDOM and getattr(self, f.name) == f.default)
        }
        found: dict[str, object] = json.loads(json.dumps(plain))
        return found
