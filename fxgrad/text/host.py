"""A language model and its tokenizer: what the model takes and knows, what it says by itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fxgrad.errors import InputError, one_line
from fxgrad.module.converted import ConvertedModule
from fxgrad.pipeline import convert
from fxgrad.table.loading import Rules
from fxgrad.text.prompts import Encoded
from fxgrad.text.seen import PIXELS, Seen, seen_in

NEW_TOKENS = 32
"""How many tokens a model says without an answer, unless `generate` has max_new_tokens."""
_OF_TOKENS = {
    *("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "position_ids", "decoder_input_ids"),
    "logits_to_keep",
}
"""Inputs of whole numbers that are one for each token. On others, a model's code decides: a conversion is for them."""


class Host:
    """A model of transformers, or a ConvertedModule of one, with its tokenizer.

    Args:
        model, tokenizer, rules: as for `fxgrad.text.explain`; of a processor, its tokenizer is taken, too.
        module: what is converted, such as the model with a pooling behind it; by default the model.

    Attributes:
        called: the name of the model's class, for messages.
        converted: the converted module; None before it is first needed.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, rules: Rules, module: nn.Module | None = None) -> None:
        self.processor, self.tokenizer = tokenizer, getattr(tokenizer, "tokenizer", tokenizer)
        self.rules = rules
        self.model = None if isinstance(model, ConvertedModule) else model
        self.called = type(model).__name__
        self.converted = model if isinstance(model, ConvertedModule) else None
        self._module = module or model
        self._decided: dict[str, Any] = {}

    def conversion(self, kwargs: dict[str, Any]) -> ConvertedModule:
        """The converted module, which takes these inputs; converted again only if it is for others.

        Raises:
            InputError: a ConvertedModule was given, which does not take them.
            CaptureError, NoRuleError, NotBalanceableError: as for `fxgrad.convert`.
        """
        decided = {name: value.tolist() for name, value in kwargs.items() if _decides(name, value)}
        if self.model is None or (self.converted is not None and decided == self._decided and self._takes(kwargs)):
            assert self.converted is not None
            self.converted.classified.captured.flatten((), kwargs)
            return self.converted
        self._decided = decided
        for example in (kwargs,) if PIXELS in kwargs else (_twice(kwargs), kwargs):
            self.converted = convert(self._module, kwargs=example, rules=self.rules)
            if self._takes(kwargs):
                break
        assert self.converted is not None
        return self.converted

    def _takes(self, kwargs: dict[str, Any]) -> bool:
        """Whether the converted module is for inputs of these sizes."""
        assert self.converted is not None
        try:
            self.converted.classified.captured.flatten((), kwargs)
        except InputError:
            return False
        return True

    def outputs(self, kwargs: dict[str, Any]) -> Any:
        """What the model itself says."""
        with torch.no_grad():
            return self._module(**kwargs)

    def given(self, name: str, value: Any) -> dict[str, Any]:
        """The argument, if the model's forward, or the ConvertedModule that was given, has it."""
        return {name: value} if name in self._arguments else {}

    @cached_property
    def _arguments(self) -> set[str]:
        return arguments_of(self._module)

    def generated(self, prompt: Encoded, options: Mapping[str, Any]) -> list[int]:
        """What the model says after a prompt, without the token that ends it.

        Raises:
            InputError: it cannot generate, its `generate` fails, or it ends at once.
        """
        generate = getattr(self.model, "generate", None)
        if self.model is None or generate is None:
            raise InputError(f"{self.called} does not generate. Give the answer, or the model of transformers itself.")
        given = {name: self.put(value) for name, value in prompt.given.items()}
        if prompt.ids:
            self.check([prompt.ids])
            ids = torch.tensor([prompt.ids], device=self.device)
            given |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        elif prompt.features is not None:
            given = {self.main: self.placed([prompt.features])}
        options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": self.padding, **options}
        try:
            with torch.no_grad():
                said = generate(**given, **options)
        except Exception as error:
            why = one_line(error).rstrip(".")
            raise InputError(f"{self.called}.generate failed ({why}). Give the answer.") from error
        behind = len(self.start()) if self._config.is_encoder_decoder else len(prompt.ids)
        tokens: list[int] = said[0, behind:].tolist()
        ends = {self.tokenizer.eos_token_id, self.tokenizer.pad_token_id, self.padding}
        while tokens and tokens[-1] in ends:
            tokens.pop()
        if not tokens:
            raise InputError(f"{self.called} ends at once after this prompt. Give the answer.")
        return tokens

    def seen(self, prompt: Encoded, given: Mapping[str, Any]) -> Seen | None:
        """The pictures of a prompt; None if it has none."""
        return seen_in(given, prompt.ids, self._config) if PIXELS in given else None

    def start(self) -> list[int]:
        """The tokens that a decoder begins with.

        Raises:
            InputError: the model does not say.
        """
        own = getattr(getattr(self.model, "generation_config", None), "decoder_start_token_id", None)
        found = own if own is not None else getattr(self._config, "decoder_start_token_id", None)
        if found is None:
            raise InputError(
                f"the config of {self.called} has no decoder_start_token_id, with which answers begin. Set it."
            )
        return [int(found)]

    def check(self, texts: Sequence[Sequence[int]]) -> None:
        """Check that the model has all these tokens, and room for them.

        Raises:
            InputError: it has not.
        """
        largest, longest = max(max(ids) for ids in texts), max(map(len, texts))
        if largest >= self._vocabulary:
            raise InputError(
                f"the tokenizer has a token {largest}, and the model's vocabulary ends at {self._vocabulary - 1}: they "
                "do not belong together. Load both from the same place."
            )
        room = self.room
        if room is not None and longest > room:
            raise InputError(
                f"prompt and answer have {longest} tokens, and {self.called} has room for {room}. Shorten them."
            )

    @property
    def main(self) -> str:
        """The name of the model's main input, such as input_features.

        Raises:
            InputError: it takes token ids only.
        """
        found = str(getattr(self.model, "main_input_name", "input_ids"))
        if found == "input_ids":
            raise InputError(f"{self.called} takes texts, and no features of sound. Give a text, or token ids.")
        return found

    def placed(self, features: Sequence[Tensor]) -> Tensor:
        """Features of sound as a batch, where the model is, in its dtype.

        Raises:
            InputError: they differ in shape.
        """
        if len({one.shape for one in features}) > 1:
            raise InputError(f"the features differ in shape: {', '.join(str(tuple(f.shape)) for f in features)}.")
        return self.put(torch.stack(list(features)))

    def put(self, value: Tensor) -> Tensor:
        """A tensor where the model is; of floating dtype, in the model's."""
        like = next(iter(self._module.parameters()))
        return value.to(like) if value.is_floating_point() else value.to(like.device)

    def continued(self, prompt: Encoded, count: int) -> dict[str, Any]:
        """What the model gets beside the ids of a prompt and of so many tokens behind it.

        Raises:
            InputError: there is an input for each token, and the model does not say how it goes on.
        """
        given = {name: self.put(value) for name, value in prompt.given.items()}
        if not given:
            return {}
        step = getattr(self.model, "_update_model_kwargs_for_generation", None)
        if step is None and any(name in _OF_TOKENS for name in given):
            names = ", ".join(name for name in given if name in _OF_TOKENS)
            raise InputError(f"{self.called} does not say how {names} go on. Pass the model of transformers itself.")
        for _ in range(count if step is not None else 0):
            given = step({}, given, is_encoder_decoder=False)  # type: ignore[misc]
        return given

    def positions(self, ids: Tensor, given: dict[str, Any]) -> dict[str, Any]:
        """The inputs with the positions of tokens and patches, for models that find them in the ids.

        Their code looks at each token; with positions, a conversion is for prompts of any length.
        """
        find = getattr(getattr(self.model, "model", None), "get_rope_index", None)
        if find is None or PIXELS not in given:
            return given
        takes = inspect.signature(find).parameters
        found, _ = find(ids, **{name: value for name, value in given.items() if name in takes})
        kept = {name: value for name, value in given.items() if name != "mm_token_type_ids"}
        return {**kept, "position_ids": found}

    @property
    def labels(self) -> list[str] | None:
        """The names of a classifier's classes."""
        named = getattr(self._config, "id2label", None)
        return None if not named else [str(named[i]) for i in sorted(named)]

    @property
    def padding(self) -> int:
        """The token that fills up short texts; where no mask hides it, nothing looks at it."""
        found = getattr(self.tokenizer, "pad_token_id", None)
        return 0 if found is None or found >= self._vocabulary else int(found)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(iter(self._module.parameters())).device

    @property
    def _config(self) -> Any:
        return getattr(self.model, "config", None)

    @property
    def _vocabulary(self) -> int:
        """How many tokens the model knows."""
        if self.model is not None:
            return int(self.model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
        assert self.converted is not None
        weights = self.converted.state_dict()
        tables = [f"{one.name}.weight" for one in self.converted.classified.captured.embedded]
        return max((len(weights[name]) for name in tables if name in weights), default=2**31)

    @property
    def room(self) -> int | None:
        """How many tokens the model has positions for; None if it does not say."""
        if self._config is None:
            return None
        found = getattr(self._config.get_text_config(), "max_position_embeddings", None)
        return found if found is not None and found > 0 else None  # some say -1 for any number


def arguments_of(model: Callable[..., Any]) -> set[str]:
    """The names of what a model, or a function, takes.

    Example:
        >>> sorted(arguments_of(torch.nn.Bilinear(2, 2, 1)))
        ['input1', 'input2']
    """
    if isinstance(model, ConvertedModule):
        return {i.name for i in model.classified.captured.inputs}
    return set(inspect.signature(model.forward if isinstance(model, nn.Module) else model).parameters)


def _decides(name: str, value: Any) -> bool:
    return name not in _OF_TOKENS and isinstance(value, Tensor) and not value.is_floating_point()


def _twice(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of one prompt as those of two, since what has size 1 in the example is 1 for ever."""
    return {
        name: torch.cat([value, value]) if isinstance(value, Tensor) and len(value) == 1 else value
        for name, value in kwargs.items()
    }
