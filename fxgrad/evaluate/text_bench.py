"""One classifier of texts in an evaluation: load it, convert it once, attribute and measure its texts."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from fxgrad.data.models import load_language_model
from fxgrad.data.texts import Texts
from fxgrad.data.tokenized import Tokenized, tokenized
from fxgrad.errors import FxgradError, InputError, one_line
from fxgrad.evaluate.measure import by_metric, stacked
from fxgrad.evaluate.methods import Attribute, TextAttribution, attributed_together
from fxgrad.evaluate.plan import Plan
from fxgrad.evaluate.units import Units, fingerprint
from fxgrad.methods.names import resolve
from fxgrad.metrics import MeasuredTexts, Metric, TokenRemoval
from fxgrad.module.converted import ConvertedModule
from fxgrad.text.host import Host
from fxgrad.text.kinds import classes, encoder_inputs, kind_of

ALWAYS = ("random", "oracle")
"""What `evaluate` measures of texts in addition to the methods asked for."""
REMOVALS = ("auto", "drop", "hide", "mask", "pad")
"""How tokens of texts are removed."""
_OF_PICTURES = ("prompts", "maps", "least_area", "input_size")
_NOT_NOTED = {"steps", "input_size"}


@dataclass(frozen=True, eq=False)
class Marked:
    """The rationale itself; a `TextAttribution` for `evaluate`.

    Attributes:
        words: 1 for a token of the rationale, else 0, (batch, tokens).
        known: which texts have a rationale, bool (batch,).
        output: zeros, (batch,): a rationale has no shares to compare with the target's value.
    """

    words: Tensor
    known: Tensor
    output: Tensor
    total: Tensor | None = None
    absolute: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Read:
    """Texts in a model's place.

    Attributes:
        texts: as tokens.
        inputs: the model's inputs by name, each (batch, tokens).
        target: the class that is attributed, int64 (batch,).
        logits: (batch, classes).
    """

    texts: Tokenized
    inputs: dict[str, Tensor]
    target: Tensor
    logits: Tensor


class TextBench(Units):
    """One loaded classifier of texts, converted under every policy of the plan, and its texts.

    Args:
        plan, data, order, methods, metrics, model: as for `Bench`.

    Raises:
        InputError: the model is no classifier of texts, or its tokenizer has no offsets; a label that it does not have.
        CaptureError, NoRuleError, NotBalanceableError: it cannot be loaded, or converted.
    """

    def __init__(
        self,
        plan: Plan,
        data: Texts,
        order: Sequence[int],
        methods: Mapping[str, Attribute],
        metrics: Sequence[Metric],
        model: str,
    ) -> None:
        super().__init__(plan, model, data.multilabel)
        self.data, self.order, self.methods, self.metrics = data, order, methods, metrics
        net, tokenizer, _ = load_language_model(
            model,
            plan.pretrained,
            checkpoint=plan.checkpoint,
            strip_prefix=plan.strip_prefix,
            num_classes=plan.num_classes,
            seed=plan.seed,
            **self.place,
        )
        called, twice = type(net).__name__, getattr(net.config, "is_encoder_decoder", False)
        if kind_of(net) is not classes or twice:
            why = "reads a text twice, in its encoder and its decoder" if twice else "is no ForSequenceClassification"
            raise InputError(f"texts are evaluated with encoders, or decoders, that classify them; {called} {why}.")
        self.fingerprint = fingerprint(net)
        self.host = Host(net.requires_grad_(False), tokenizer, "gradient")
        self.batch = functools.lru_cache(1)(self._batch)
        # The first texts, whatever is left to do: so that a run that goes on has the same program.
        first = self.batch(0, min(plan.chunk, len(order)))
        self.plain = self.host.conversion(first.inputs).requires_grad_(False)
        self.removal = text_removal(self.host, plan.removal, first.inputs, first.texts.counted)
        self._example = first.inputs

    @property
    def longest(self) -> int | None:
        """The most tokens that the model takes; None if neither it nor its tokenizer says."""
        own = getattr(self.host.tokenizer, "model_max_length", None)
        said = [n for n in (self.host.room, own) if n is not None and n < 1_000_000]  # a tokenizer's 1e30 is no limit
        return min(said, default=None)

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"removal": self.removal.name, **({} if self.longest is None else {"length": self.longest})}

    @property
    def example(self) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        return (), self._example

    def open(self, start: int, stop: int) -> None:
        """Read the texts; a model whose code fixes their length is converted for this one."""
        converted = self.host.conversion(self.batch(start, stop).inputs)
        if converted is not self.plain:
            self.plain = converted.requires_grad_(False)
            for cache in (self.under, self.exact_under, self.first_alike):
                cache.cache_clear()
            self.__dict__.pop("exact", None)
            self._example = self.batch(start, stop).inputs

    def named(self, start: int, stop: int) -> tuple[Sequence[str], Sequence[str]]:
        passages = self.batch(start, stop).texts.passages
        return [p.id for p in passages], [p.group or p.id for p in passages]

    def attributed(
        self, methods: Sequence[str], converted: ConvertedModule, start: int, stop: int
    ) -> Sequence[TextAttribution | FxgradError]:
        return self._attributed(methods, converted, self.batch(start, stop), start)

    def _attributed(
        self, methods: Sequence[str], converted: ConvertedModule, read: Read, start: int, count: int | None = None
    ) -> Sequence[TextAttribution | FxgradError]:
        """The attributions of the first so many texts; of all by default."""
        inputs = {name: value[:count] for name, value in read.inputs.items()}
        chosen = [m for m in methods if m != "oracle"]
        functions = [self.methods[m] for m in chosen]
        found = attributed_together(functions, converted, inputs, read.target[:count], None, self.plan.seed + start)
        marked = (read.texts.rationales & read.texts.counted)[:count]
        oracle = Marked(marked.float(), marked.any(1), torch.zeros(len(marked)))
        made = {m: _of_tokens(one, marked.shape) for m, one in zip(chosen, found)}
        return [made.get(m, oracle) for m in methods]

    def values(
        self, attributions: Mapping[str, TextAttribution], policy: str, start: int, stop: int
    ) -> Mapping[str, Mapping[str, list[float]]]:
        read = self.batch(start, stop)
        output, total, absolute = stacked(list(attributions.values()))
        measured = MeasuredTexts(
            scores=torch.stack([a.words.cpu().float() for a in attributions.values()]),
            total=total,
            absolute=absolute,
            output=output,
            counted=read.texts.counted,
            rationales=read.texts.rationales,
            inputs=read.inputs,
            target=read.target,
            logits=read.logits,
            multilabel=self.multilabel,
            removal=self.removal,
            fractions=self.plan.fractions,
            explain=functools.partial(self._explained, list(attributions), policy, start, stop),
        )
        return by_metric(self.metrics, measured, attributions)

    def _explained(
        self, methods: Sequence[str], policy: str, start: int, stop: int, count: int, exact: bool
    ) -> Tensor | None:
        """Attributions of the first texts, float64 (methods, rows, tokens); None without a float64 twin."""
        if exact and (self.place["dtype"] is torch.float64 or self.exact is None):
            return None
        converted = self.exact_under(policy) if exact else self.under(policy)
        found = self._attributed(methods, converted, self.batch(start, stop), start, count)
        for one in found:
            if isinstance(one, FxgradError):
                raise one
        return torch.stack([one.words.cpu().double() for one in found if not isinstance(one, FxgradError)])

    def _batch(self, start: int, stop: int) -> Read:
        texts = tokenized(self.host.tokenizer, [self.data[i] for i in self.order[start:stop]], self.longest)
        self.host.check([one.ids for one in texts.encoded])
        inputs = encoder_inputs(self.host, texts.encoded)
        try:
            logits = self.host.outputs(inputs).logits
        except ValueError as error:  # such as no padding token
            raise InputError(f"{self.model} does not run on a batch of texts: {one_line(error)}.") from error
        labels = torch.zeros(len(logits), dtype=torch.long)
        if self.plan.target == "label":
            labels = torch.tensor([self._label(p.label, p.id, logits.shape[1]) for p in texts.passages])
        return Read(texts, inputs, self.target(labels.to(logits.device), logits), logits)

    def _label(self, label: int | str | None, text: str, count: int) -> int:
        """The number of a label; a name is one of the model's, or if these are LABEL_0 ..., of the data set's."""
        if label is None:
            raise InputError(f"{text} has no label. Give it one, or use --target predicted.")
        names = self.host.labels
        if names == [f"LABEL_{i}" for i in range(count)]:
            names = list(self.data.class_names or names)
        try:
            return resolve(label, count, names)
        except InputError as error:
            raise InputError(f"the label {label!r} of {text} is none of {self.model}'s. {error}") from error


def text_settings(plan: Plan) -> dict[str, object]:
    """What is noted of a plan for texts.

    Raises:
        InputError: a setting is for pictures.
    """
    if plan.removal not in REMOVALS:
        raise InputError(f"{plan.removal} removes parts of pictures; tokens of texts, {', '.join(REMOVALS)}.")
    defaults = {field.name: field.default for field in fields(plan)}
    for name in _OF_PICTURES:
        if getattr(plan, name) != defaults[name]:
            raise InputError(f"{name} is for pictures, and {plan.data} has texts. Leave it out.")
    return {k: v for k, v in plan.settings.items() if k not in _NOT_NOTED} | {"examples": "texts"}


def text_removal(host: Host, how: str, inputs: Mapping[str, Tensor], counted: Tensor) -> TokenRemoval:
    """The removal of tokens for a classifier of texts.

    Args:
        host: the model and its tokenizer.
        how: "drop", "hide", "mask", "pad"; or "auto": the first of drop, hide and mask that the model can do.
        inputs, counted: some texts, as for `TokenRemoval.prepare`.

    Raises:
        InputError: the model, or its tokenizer, lacks what is needed.
    """
    if how != "auto":
        return _removal(host, how, inputs, counted)
    refused = []
    for way in ("drop", "hide", "mask"):
        try:
            found = _removal(host, way, inputs, counted)
        except InputError as error:
            refused.append(str(error).partition(" Use ")[0].rstrip("."))
            continue
        found.name += f" ({'; '.join(refused)})" if refused else ""
        return found
    raise InputError(f"there is no way to remove tokens: {'; '.join(refused)}.")


def _removal(host: Host, how: str, inputs: Mapping[str, Tensor], counted: Tensor) -> TokenRemoval:
    """One way to remove tokens, tried once."""
    assert host.model is not None
    if how in ("drop", "hide"):
        found = TokenRemoval(host.model, how, host.padding)
    else:
        token = getattr(host.tokenizer, f"{how}_token_id", None)
        if token is None:
            raise InputError(f"the tokenizer has no token to {how} with. Use --removal drop or hide.")
        found = TokenRemoval(host.model, "replace", int(token))
        found.name = f"replaced by {host.tokenizer.convert_ids_to_tokens(int(token))}"
    found.prepare(inputs, counted)
    return found


def _of_tokens(found: TextAttribution | FxgradError, shape: torch.Size) -> TextAttribution | FxgradError:
    """An attribution, or why it is none of the text's tokens."""
    if isinstance(found, FxgradError) or found.words.shape == shape:
        return found
    return InputError(f"it maps {tuple(found.words.shape)}, and the texts have {tuple(shape)} tokens.")
