"""Random calls of fxgrad's public functions: a user's model, inputs that fit or do not, a target, a method, a policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import _pytree as pytree

from fxgrad.methods import METHODS, Contrast, Probability, Similarity, Token
from tests.helpers.quick import QUICK
from tests.helpers.user_models import CLASSES, FAMILIES, WORDS, Family, family_of

Args = tuple[Any, ...]
POLICIES = ["libragrad", "gradient", "attnlrp", "cp-lrp"]
BALANCED = {"libragrad"}
"""Policies under which every method with shares must be complete."""


def logits(outputs: Any) -> Tensor:
    """The first tensor of floating dtype that is named logits, or has more than one axis, or that there is."""
    if isinstance(outputs, dict) or hasattr(outputs, "logits"):
        found: Tensor = outputs["logits"] if isinstance(outputs, dict) else outputs.logits
        return found
    leaves = [v for v in pytree.tree_leaves(outputs) if isinstance(v, Tensor) and v.is_floating_point()]
    return leaves[0]


# Inputs that do not fit. Each takes an argument and gives another one.

SPOILED: dict[str, Callable[[Any], Any]] = {
    "rank": lambda x: x[None],
    "lower rank": lambda x: x[0] if x.dim() else x,
    "size": lambda x: torch.cat([x, x[..., :1]], -1),
    "other dtype": lambda x: x.long() if x.is_floating_point() else x.double(),
    "half": lambda x: x.half() if x.is_floating_point() else x.to(torch.int32),
    "float32": lambda x: x.float(),
    "bool": lambda x: x > 0,
    "complex": lambda x: x.to(torch.complex64),
    "out of range": lambda x: x * 1e9 if x.is_floating_point() else x + 1000,
    "negative": lambda x: -x - 1,
    "nan": lambda x: x * float("nan") if x.is_floating_point() else x,
    "infinite": lambda x: x * float("inf") if x.is_floating_point() else x,
    "zeros": torch.zeros_like,
    "empty": lambda x: x[:0],
    "none": lambda x: None,
    "list": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "number": lambda x: 3,
    "text": lambda x: "three",
    "nested": lambda x: [x],
    "wants gradient": lambda x: x.clone().requires_grad_() if x.is_floating_point() else x,
    "expanded": lambda x: x[:1].expand(x.shape),
    "sparse": lambda x: x.to_sparse(),
}
RIGHT = {"wants gradient", "expanded", "zeros", "nan", "infinite", "out of range", "negative"}
"""Those that may fit, by the model."""
FITTING = ["example", "batch", "one", "longer", "strided", "keyword"]
SHAPED = ["missing", "extra", "unknown keyword", "bare"]


# Targets: what to pass, and the same as a plain function of the outputs (None: unknown, or the target is wrong).

Target = tuple[Any, Callable[[Any], Tensor] | None]
NAMES = ["ant", "bee", "cat"]


def _pick(y: Tensor, index: Tensor) -> Tensor:
    return y.gather(1, index[:, None])[:, 0]


def _labels(batch: int, rows: slice) -> Tensor:
    return (torch.arange(batch) * 7 % CLASSES)[rows]


def _dense(y: Tensor) -> Tensor:
    return y.reshape(len(y), -1)


def _plain(f: Callable[[Tensor], Tensor]) -> Target:
    """A function of the logits is its own definition."""

    def target(outputs: Any) -> Any:
        return f(logits(outputs))

    return target, target


def _wrong(f: Callable[[Tensor], Any]) -> Target:
    return lambda outputs: f(logits(outputs)), None


TARGETS: dict[str, Callable[[int, slice], Target]] = {
    "none": lambda n, rows: (None, lambda y: _pick(logits(y), logits(y).argmax(1))),
    "class": lambda n, rows: (1, lambda y: logits(y)[:, 1]),
    "class out of range": lambda n, rows: (99, None),
    "negative class": lambda n, rows: (-1, None),
    "name": lambda n, rows: ("bee", lambda y: logits(y)[:, 1]),
    "unknown name": lambda n, rows: ("cow", None),
    "classes": lambda n, rows: (_labels(n, rows), lambda y: _pick(logits(y), _labels(n, rows))),
    "too many classes": lambda n, rows: (torch.zeros(n + 1, dtype=torch.long), None),
    "classes out of range": lambda n, rows: (torch.full((n,), 1000)[rows], None),
    "float classes": lambda n, rows: (torch.zeros(n)[rows], None),
    "contrast": lambda n, rows: (Contrast(1, 0), lambda y: logits(y)[:, 1] - logits(y)[:, 0]),
    "contrast of others": lambda n, rows: (
        Contrast(_labels(n, rows), "cat"),
        lambda y: _pick(logits(y), _labels(n, rows)) - logits(y)[:, 2],
    ),
    "token": lambda n, rows: (Token(), lambda y: logits(y)[:, -1].amax(-1)),
    "token at": lambda n, rows: (Token(0, 2), lambda y: logits(y)[:, 0, 2]),
    "token each": lambda n, rows: (
        Token(torch.arange(n)[rows] % 3, _labels(n, rows)),
        lambda y: _pick(
            _pick(logits(y), (torch.arange(n)[rows] % 3)[:, None].expand(-1, logits(y).shape[2])), _labels(n, rows)
        ),
    ),
    "token named": lambda n, rows: (Token(-1, "bee"), lambda y: logits(y)[:, -1, 1]),
    "token unknown": lambda n, rows: (Token(-1, "cow"), None),
    "token out of range": lambda n, rows: (Token(50, 500), None),
    "token of floats": lambda n, rows: (Token(torch.zeros(n)[rows]), None),
    "probability": lambda n, rows: (Probability(0), None),
    "similarity": lambda n, rows: (Similarity(torch.ones(CLASSES)), None),
    "similarity of other width": lambda n, rows: (Similarity(torch.ones(7)), None),
    "function": lambda n, rows: _plain(lambda y: _dense(y).sum(1)),
    "labelled function": lambda n, rows: _plain(lambda y: _pick(_dense(y), _labels(n, rows))),
    "weighted function": lambda n, rows: _plain(lambda y: _dense(y) @ torch.linspace(-1, 1, _dense(y).shape[1]).to(y)),
    "middle token": lambda n, rows: _plain(lambda y: y[:, y.shape[1] // 2].reshape(len(y), -1).sum(1)),
    "curved function": lambda n, rows: _plain(lambda y: _dense(y).square().sum(1)),
    "shifted function": lambda n, rows: _plain(lambda y: _dense(y).sum(1) + 3),
    "mixing function": lambda n, rows: _wrong(lambda y: _dense(y).sum(1) - _dense(y).sum()),
    "one number": lambda n, rows: _wrong(lambda y: y.sum()),
    "wrong shape": lambda n, rows: _wrong(lambda y: y[..., None]),
    "constant function": lambda n, rows: _wrong(lambda y: torch.ones(len(y))),
    "detached function": lambda n, rows: _wrong(lambda y: _dense(y).detach().sum(1)),
    "numpy function": lambda n, rows: _wrong(lambda y: _dense(y).detach().numpy().sum(1)),
    "float function": lambda n, rows: _wrong(lambda y: float(y.sum())),
    "failing function": lambda n, rows: _wrong(lambda y: y[:, 77]),
    "no tensor function": lambda n, rows: _wrong(lambda y: None),
    "integer function": lambda n, rows: _wrong(lambda y: _dense(y).argmax(1)),
    "no arguments": lambda n, rows: ((lambda: 3), None),
    "number": lambda n, rows: (1.5, None),
    "object": lambda n, rows: (object(), None),
    "dict": lambda n, rows: ({"class": 1}, None),
    "nested contrast": lambda n, rows: (Contrast([1], None), None),
    "none of several": lambda n, rows: ([None, 1], None),
    "no target": lambda n, rows: ([], None),
}
OFTEN = ["none", "class", "classes", "function", "token", "labelled function", "weighted function", "contrast"]
MUST_FAIL = {
    *("class out of range", "unknown name", "too many classes", "classes out of range", "float classes", "wrong shape"),
    *("token unknown", "token out of range", "token of floats", "similarity of other width", "constant function"),
    *("detached function", "numpy function", "float function", "failing function", "no tensor function"),
    *("integer function", "no arguments", "number", "object", "dict", "nested contrast"),
}
"""Targets without a right answer, whatever the model."""

OPTIONS: list[dict[str, Any]] = [
    *[{}] * 8,
    {"layer": "blocks.0"},
    {"layer": "nowhere"},
    {"layer": 3},
    {"blocks": ["blocks.0", "blocks.1"]},
    {"blocks": ["layers.0"]},
    {"blocks": ["nowhere"]},
    {"blocks": []},
    {"blocks": "blocks.0"},
    {"grid": (4, 4)},
    {"grid": (3, 5)},
    {"grid": (0, 0)},
    {"grid": 4},
    {"prefix": 1},
    {"prefix": 100},
    {"class_token": 0},
    {"class_token": 99},
    {"input": "x"},
    {"input": "y"},
    {"input": "nothing"},
    {"n_steps": 3},
    {"n_steps": 0},
    {"samples": 2},
    {"samples": 0},
    {"baseline": 0.5},
    {"unknown": 1},
    {"class_names": ["a"]},
    {"class_names": 3},
]
ACTIONS = ["vjp", "check", "save", "again", "export"]


@dataclass(frozen=True)
class Call:
    """A call as data.

    Attributes:
        family, numbers: which model; see `tests.helpers.user_models.family_of`.
        converted: how the example inputs are made: "example", or the name of something wrong with them.
        inputs: how the inputs to attribute are made: fitting, or the name of something wrong with them.
        place: which argument that is wrong.
        target, method, policy: names.
        options: further options of attribute, an index in `OPTIONS`.
        action: what is tried besides attribute.
        detail: a number for what else is drawn.
        seed: of weights and inputs.
    """

    family: str = "mlp"
    numbers: tuple[int, ...] = (0,) * 8
    converted: str = "example"
    inputs: str = "example"
    place: int = 0
    target: str = "none"
    method: str = "input_x_gradient"
    policy: str = "libragrad"
    options: int = 0
    action: str = "check"
    detail: int = 0
    seed: int = 0

    @cached_property
    def model(self) -> Family:
        return family_of(self.family, self.numbers, self.seed)

    def example(self, batch: int = 2, longer: bool = False, stream: int = 0) -> Args:
        """Inputs that fit, or would if the model's sizes are free."""
        return self.model.make(batch, longer, torch.Generator().manual_seed(100 * self.seed + stream))

    def arguments(self, how: str) -> tuple[Any, dict[str, Any]]:
        """(positional arguments, keyword arguments) made like that."""
        args = self.example()
        if how == "batch":
            args = self.example(3, stream=1)
        elif how == "one":
            args = self.example(1, stream=1)
        elif how == "longer":
            args = self.example(2, True, stream=1)
        elif how == "strided":
            args = tuple(x.transpose(0, -1).contiguous().transpose(0, -1) for x in args)
        elif how == "keyword":
            return args[:-1], {"xy"[len(args) - 1] if self.family != "mlp" else "input": args[-1]}
        elif how == "missing":
            return args[:-1], {}
        elif how == "extra":
            return (*args, args[0]), {}
        elif how == "unknown keyword":
            return args, {"nothing": args[0]}
        elif how == "bare":
            return args[0], {}
        elif how in SPOILED:
            place = self.place % len(args)
            args = tuple(SPOILED[how](x) if i == place else x for i, x in enumerate(args))
        return args, {}

    def cut(self, args: Args, i: int) -> Args:
        """One example of a batch."""
        pairs = zip(args, self.model.axes)
        return tuple(x if axis is None else x.narrow(axis, i, 1) for x, axis in pairs)

    @property
    def batch_axis(self) -> int | None:
        return self.model.axes[0]

    def given(self) -> dict[str, Any]:
        """Keyword arguments of attribute besides the target."""
        vocabulary = self.family in ("decoder", "translator")
        names: Any = [*NAMES, *(f"w{i}" for i in range(3, WORDS))] if vocabulary else NAMES
        if self.detail % 3 == 1:
            names = {name: i for i, name in enumerate(names)}
        return {"method": self.method, "class_names": names, **QUICK.get(self.method, {}), **OPTIONS[self.options]}


TOKENS = ("decoder", "translator")


def calls_of(choose: Callable[[Sequence[Any]], Any], count: int = 4) -> list[Call]:
    """Calls of one model; `choose` draws one item of a sequence. In most calls, one thing is unusual or wrong."""
    family, wrong = choose(list(FAMILIES)), choose(["", "", "", "", "converted"])
    first = Call(
        family,
        tuple(choose(range(24)) for _ in range(8)),
        choose([*SPOILED, *SHAPED]) if wrong else "example",
        policy=choose(["libragrad", *POLICIES]),
        action=choose(ACTIONS),
        seed=choose(range(100)),
    )
    return [_varied(first, choose) for _ in range(count)]


def _varied(call: Call, choose: Callable[[Sequence[Any]], Any]) -> Call:
    wrong = choose(["", "", "inputs", "target", "options", "several"])
    several = wrong == "several"
    often = ["token", "token at", "token each", "token named", "function"] if call.family in TOKENS else OFTEN
    return replace(
        call,
        inputs=choose([*SPOILED, *SHAPED] if wrong == "inputs" or several else FITTING),
        place=choose(range(2)),
        target=choose(list(TARGETS) if wrong == "target" or several else often),
        method=choose(choose([["input_x_gradient", "fullgrad", "hirescam", "fullgrad_plus"], list(METHODS)])),
        options=choose(range(len(OPTIONS)) if wrong == "options" or several else range(1)),
        detail=choose(range(12)),
    )


@st.composite
def calls(draw: st.DrawFn) -> list[Call]:
    """Random calls of one model. Shrinks towards plain ones."""
    return calls_of(lambda items: draw(st.sampled_from(items)))
