"""Which methods are run under which policies, and the folder that keeps what has been measured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fxgrad.methods import METHODS, Map, Problem, attribute, method
from fxgrad.methods.attribution import Attribution
from fxgrad.module.converted import ConvertedModule
from fxgrad.run.recording import Contributions

POLICIES = (
    *("gradient", "libragrad", "attnlrp", "cp-lrp", "libragrad-without-normalization", "libragrad-without-attention"),
    *("libragrad-without-gated-activation", "libragrad-without-product"),
)


def tokens_input_x_gradient(problem: Problem) -> Map:
    """Input x Gradient of the tokens: sum_c h * g, h the first block's input.

    Source: Mehri et al., LibraGrad, arXiv:2411.16760, which takes the inputs to be the embedded patches.
    """
    return replace(METHODS["input_x_gradient"](problem, at="tokens"), apart=None)


PENULTIMATE = "hirescam_penultimate"
TOGETHER: dict[str, tuple[Callable[..., Map], str | None]] = {
    **{name: (METHODS[name], None) for name in ("input_x_gradient", "gradcam_plus", "xgradcam_plus", "hirescam")},
    PENULTIMATE: (METHODS["hirescam"], "blocks.9"),
    "tokens_input_x_gradient": (tokens_input_x_gradient, None),
    **{name: (METHODS[name], None) for name in ("fullgrad", "fullgrad_plus", "attcat", "genatt", "gradsam", "tokentm")},
}
"""Name -> fxgrad's method, and its layer: HiResCAM looks at the last block's input, or at that of the one before."""
ALONE = {"integrated_gradients": {"n_steps": 5}}
"""Methods that need runs of their own, and their options."""
NONE = ("raw_attention", "rollout", "random")
"""Methods that take no gradient."""
ANY = "any"
"""Their policy."""


@dataclass(frozen=True, eq=False)
class Shared(Problem):
    """A problem whose methods share one recorded run, since each of them would repeat it.

    Attributes:
        asked: nodes that were asked for, of this and earlier problems of the same model.
        recorded: the run, once there is one.
    """

    asked: set[str] = field(default_factory=set)
    recorded: list[Contributions] = field(default_factory=list)

    def run(self, also: Collection[str] = (), sources: bool = False) -> Contributions:
        if not self.recorded or not set(also) <= self.asked:
            self.asked.update(also)
            self.recorded[:] = [super().run(self.asked, sources=True)]
        return self.recorded[0]


@dataclass(frozen=True)
class Found:
    """One method's numbers for a batch.

    Attributes:
        tokens: without those ahead of the patches, (batch, tokens); a patch has the sum of its pixels.
        pixels: (batch, height, width), of methods that have them.
        total: the sum of the shares, (batch,), where the numbers are shares.
        output: the target's value, (batch,).
    """

    tokens: Tensor
    pixels: Tensor | None
    total: Tensor | None
    output: Tensor

    @classmethod
    def of(cls, found: Attribution) -> Found:
        """What is needed of an attribution."""
        tokens = found.patches.flatten(1) if found.anatomy.grid else found.tokens
        return cls(tokens, found.pixels if found.of_pixels else None, found.total, found.output)


class Explainer:
    """All methods of one converted model under one policy, from one forward and one backward pass of each batch.

    Args:
        converted: the model under the policy.
        methods: name -> a method, and its layer.
    """

    def __init__(
        self, converted: ConvertedModule, methods: Mapping[str, tuple[Callable[..., Map], str | None]]
    ) -> None:
        self.converted, self.methods, self.names = converted, methods, set[str]()

    def __call__(self, x: Tensor, target: Tensor) -> dict[str, Found]:
        """Every method's numbers for a batch and its targets; `fxgrad.attribute` has the same, one by one."""
        maps: dict[str, Map] = {}

        @method(shares=True)
        def together(problem: Problem) -> Map:
            known = {f.name: getattr(problem, f.name) for f in fields(Problem)}
            shared = Shared(**known, asked=self.names)
            for name, (function, layer) in self.methods.items():
                maps[name] = function(replace(shared, layer=layer) if layer else shared)
            # Without shares, or a cause would be sought, node by node, each time they do not add up.
            return replace(next(iter(maps.values())), apart=None)

        whole = attribute(self.converted, (x,), target=target, method=together)
        return {name: self._found(map, whole) for name, map in maps.items()}

    def _found(self, map: Map, whole: Attribution) -> Found:
        own = map.maps.get(whole.anatomy.input)
        pixels = map.tokens is None and own is not None and whole.anatomy.grid is not None
        values = own if map.tokens is None else map.tokens
        assert values is not None
        maps = map.maps if own is not None else {whole.anatomy.input: values, **map.maps}
        plain = replace(whole, map=values, maps=maps, apart=map.apart, copies=map.copies, of_pixels=pixels)
        return Found.of(plain)


def alone(converted: ConvertedModule, x: Tensor, target: Tensor) -> dict[str, Found]:
    """The methods that need runs of their own, on a batch."""
    return {
        name: Found.of(attribute(converted, (x,), target=target, method=name, **options))
        for name, options in ALONE.items()
    }


class Store:
    """A folder of .npz files, one for each cell, written whole: a run that was killed goes on where it was.

    Args:
        folder: made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str) -> dict[str, np.ndarray]:
        """What is kept under a name; empty if nothing is."""
        path = self.folder / f"{name}.npz"
        if not path.exists():
            return {}
        with np.load(path, allow_pickle=False) as file:
            return dict(file)

    def put(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep arrays under a name, in place of what was there."""
        temporary = self.folder / f"{name}.tmp.npz"
        np.savez_compressed(temporary, **arrays)
        temporary.replace(self.folder / f"{name}.npz")

    def extend(self, name: str, columns: Mapping[str, Tensor]) -> None:
        """Add rows to what is kept under a name, as float32."""
        kept = self.get(name)
        new = {key: values.detach().to(torch.float32).numpy() for key, values in columns.items()}
        self.put(name, {key: np.concatenate([kept[key], rows]) if kept else rows for key, rows in new.items()})

    def rows(self, name: str) -> int:
        """How many rows are kept under a name."""
        return next((len(values) for values in self.get(name).values()), 0)


def firsts(store: Store, part: str, converted: ConvertedModule, x: Tensor, target: Tensor) -> dict[str, str]:
    """Policy -> the first one that gives the input the same gradient, bit by bit, and so is measured in its place.

    Args:
        store: keeps what is found.
        part: of the table, such as "mosaics".
        converted: the model.
        x, target: a batch to try them on.
    """
    if kept := store.get(f"alike.{part}"):
        return {policy: str(first) for policy, first in kept.items()}
    maps = {
        policy: attribute(converted.under(policy), (x,), target=target, method="gradient", channels=None).map
        for policy in POLICIES
    }
    found = {policy: next(p for p in POLICIES if torch.equal(maps[p], own)) for policy, own in maps.items()}
    store.put(f"alike.{part}", {policy: np.array(first) for policy, first in found.items()})
    return found
