"""Remove tokens of a text from a classifier's input: hide them from the attention, replace them, or leave them out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.text.host import arguments_of

IDS, MASK, POSITIONS = "input_ids", "attention_mask", "position_ids"
HOWS = {"hide": "hidden from the attention", "replace": "replaced by the token {}", "drop": "left out"}
"""How tokens are removed -> in words."""


class TokenRemoval:
    """A classifier of texts that runs on some of their tokens.

    Args:
        model: takes input_ids and further inputs by name, each (texts, tokens), and returns logits (texts, classes), or
            an output with `.logits`.
        how: "hide" sets the attention_mask of removed tokens to 0; "replace" puts `token` in their place; "drop" leaves
            them out, and the others keep their positions.
        token: for "replace", the number of the mask token, or of padding; for "drop", the number of what fills up
            texts that became shorter than others.

    Raises:
        InputError: there is no such way, or the model lacks the input that it needs.

    Example:
        >>> def total(input_ids, attention_mask):
        ...     return (input_ids * attention_mask).sum(1, keepdim=True).float()
        >>> inputs, keep = {"input_ids": torch.tensor([[1, 5, 7]])}, torch.tensor([[True, True, False]])
        >>> removal = TokenRemoval(total)
        >>> removal(removal.prepare(inputs, torch.ones(1, 3, dtype=torch.bool)), keep).item()
        6.0
    """

    def __init__(self, model: Callable[..., Any], how: str = "hide", token: int = 0) -> None:
        if how not in HOWS:
            raise InputError(f"tokens are removed by {', '.join(map(repr, HOWS))}, not {how!r}.")
        self.model, self.how, self.token = model, how, token
        self.name = HOWS[how].format(token)
        self._takes = arguments_of(model)
        called = type(model).__name__
        if how == "hide" and MASK not in self._takes:
            raise InputError(f"{called} takes no {MASK}, which hides tokens. Use 'replace' or 'drop'.")
        if how == "drop" and not {MASK, POSITIONS} <= self._takes:
            missing = POSITIONS if MASK in self._takes else MASK
            raise InputError(
                f"{called} takes no {missing}, without which tokens that are left would move. Use 'hide' or 'replace'."
            )

    def prepare(self, inputs: Mapping[str, Tensor], counted: Tensor) -> dict[str, Tensor]:
        """The inputs with what the removal needs, after a look at whether the model really does without the tokens.

        Args:
            inputs: input_ids, and further ones by name, each (texts, tokens).
            counted: the tokens that may be removed, bool (texts, tokens).

        Raises:
            InputError: inputs that do not fit; the model reads tokens that are hidden from the attention; or tokens
                that are left would move as others are dropped.
        """
        if IDS not in inputs:
            raise InputError(f"tokens are removed from inputs that have {IDS}; these have {', '.join(inputs)}.")
        ids = inputs[IDS]
        for name, value in {**inputs, "counted": counted}.items():
            if value.shape != ids.shape or value.dim() != 2:
                raise InputError(
                    f"{IDS} and all that belongs to it are (texts, tokens) of the same shape; {name} is "
                    f"{tuple(value.shape)}, {IDS} {tuple(ids.shape)}."
                )
        if counted.dtype is not torch.bool:
            raise InputError(f"counted says which tokens may be removed: it is bool, not {counted.dtype}.")
        found, counted = dict(inputs), counted.to(ids.device)
        if MASK in self._takes:
            found.setdefault(MASK, torch.ones_like(ids))
        if self.how == "hide":
            self._refuse_if_read(found, counted)
        return self._placed(found) if self.how == "drop" else found

    @staticmethod
    def there(prepared: Mapping[str, Tensor]) -> Tensor:
        """Which tokens are no padding, bool (texts, tokens)."""
        mask = prepared.get(MASK)
        return torch.ones_like(prepared[IDS], dtype=torch.bool) if mask is None else mask.bool()

    @torch.no_grad()
    def __call__(self, prepared: Mapping[str, Tensor], keep: Tensor) -> Tensor:
        """Logits (texts, classes) of prepared inputs with only the tokens `keep`, bool (texts, tokens)."""
        if self.how == "hide":
            mask = prepared[MASK]
            return self._logits({**prepared, MASK: mask * keep.to(mask.dtype)})
        if self.how == "replace":
            return self._logits({**prepared, IDS: prepared[IDS].where(keep, self.token)})
        return self._logits(self._dropped(prepared, keep))

    def _logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        outputs = self.model(**inputs)
        logits = getattr(outputs, "logits", outputs)
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            raise InputError("tokens are removed from classifiers of texts, which return logits (texts, classes).")
        return logits

    def _dropped(self, prepared: Mapping[str, Tensor], keep: Tensor) -> dict[str, Tensor]:
        """The inputs without the other tokens, those that are left side by side; short texts are filled up behind."""
        kept = keep & self.there(prepared)
        order = (~kept).byte().argsort(dim=1, stable=True)[:, : int(kept.sum(1).max())]
        found = {name: value.gather(1, order) for name, value in prepared.items()}
        there = kept.gather(1, order)
        return {**found, IDS: found[IDS].where(there, self.token), MASK: there.to(found[MASK].dtype)}

    @torch.no_grad()
    def _refuse_if_read(self, inputs: Mapping[str, Tensor], counted: Tensor) -> None:
        """Check: what the last token is does not matter once it is hidden."""
        ids, there = inputs[IDS], self.there(inputs)
        last = counted & (counted.cumsum(1) == counted.sum(1, keepdim=True))
        some = (there & ~last).any(1) & last.any(1)
        low, high = ids[counted].aminmax() if some.any() else (ids[0, 0], ids[0, 0])
        if low == high:
            return
        other = {**inputs, IDS: ids.where(~last, torch.where(ids == high, low, high))}
        pair = [self({n: v[some] for n, v in one.items()}, ~last[some]) for one in (inputs, other)]
        if not _alike(*pair):
            raise InputError(
                f"{type(self.model).__name__} reads a token that is hidden from the attention, such as the last one of "
                "a causal model. Use 'drop' or 'replace'."
            )

    @torch.no_grad()
    def _placed(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inputs with the positions of the tokens, by which the model computes what it computes without."""
        there = self.there(inputs)
        # Some models count from behind the padding's own number on.
        counts = (torch.arange(there.shape[1], device=there.device).expand(there.shape), there.cumsum(1) + self.token)
        candidates = [inputs[POSITIONS]] if POSITIONS in inputs else [count.contiguous() for count in counts]
        whole = self._logits(inputs)
        for positions in candidates:
            found = {**inputs, POSITIONS: positions}
            try:
                if _alike(self._logits(found), whole) and self._stays(found):
                    return found
            except IndexError:  # beyond the model's last position
                continue
        raise InputError(
            f"{type(self.model).__name__} does not place tokens by their {POSITIONS} alone, so those that are left "
            f"would move; or padding is not the token {self.token}. Use 'hide' or 'replace'."
        )

    def _stays(self, inputs: Mapping[str, Tensor]) -> bool:
        """Whether to drop each text's second token is to hide it."""
        there = self.there(inputs)
        second = there & (there.cumsum(1) == 2)
        some = there.sum(1) > 2  # the last token may be the one that is read
        rows = {name: value[some] for name, value in inputs.items()}
        keep = ~second[some]
        hidden = {**rows, MASK: rows[MASK] * keep.to(rows[MASK].dtype)}
        return not some.any() or _alike(self(rows, keep), self._logits(hidden))


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether logits are the same but for rounding; parts of a model may compute in float32."""
    eps = max(torch.finfo(one.dtype).eps, torch.finfo(torch.float32).eps)
    return bool(((one - other).abs() <= 100 * eps * max(1.0, float(other.abs().max()))).all())
