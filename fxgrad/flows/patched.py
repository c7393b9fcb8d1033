"""The result of `fxgrad.patching`: an estimate for each token of each cut, and the effect beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.report import markdown
from fxgrad.writing import write_text

SHOWN = 10
"""How many tokens are printed."""


class Patch(NamedTuple):
    """One token of one cut, replaced by the other input's.

    Attributes:
        node: as in the graph of a flow, such as "blocks.1[5]".
        name: of the token, such as "patch 0, 4" or a word.
        estimate: the estimate of the effect.
        effect: the effect; None if effects were not asked for.
    """

    node: str
    name: str
    estimate: float
    effect: float | None


class Correlation(NamedTuple):
    """How well estimates agree with effects; NaN where all of either are equal."""

    pearson: float
    spearman: float


@dataclass(frozen=True, eq=False)
class Patching:
    """What it does to a target to replace single tokens by those of another input; see `fxgrad.patching`.

    Attributes:
        target: the target, in words.
        rules: the policy that the estimates are made with.
        run: "clean" or "corrupt": the run into which the other's values are put.
        clean, corrupt: the target's value in both runs.
        about: cut -> what is known of each of its tokens, as of the nodes of a flow: `name`, `token`, `row`, `column`.
        nodes: cut -> the name of each of its tokens, as in a flow, such as "blocks.1[5]".
        estimate: cut -> the estimates, (tokens,).
        effect: cut -> the effects, (tokens,); {} if they were not asked for.
    """

    target: str
    rules: str
    run: str
    clean: float
    corrupt: float
    about: Mapping[str, tuple[Mapping[str, Any], ...]]
    nodes: Mapping[str, tuple[str, ...]]
    estimate: Mapping[str, Tensor]
    effect: Mapping[str, Tensor]

    @property
    def correlation(self) -> dict[str, Correlation]:
        """Cut -> how well its estimates agree with its effects; "all" -> the same for all cuts together.

        Raises:
            InputError: there are no effects, or SciPy is not installed.
        """
        if not self.effect:
            raise InputError("there are no effects to compare with. Call fxgrad.patching(..., effects=True).")
        pairs = {cut: (found, self.effect[cut]) for cut, found in self.estimate.items()}
        whole = torch.cat([*self.estimate.values()]), torch.cat([*self.effect.values()])
        return {name: _correlation(*pair) for name, pair in {**pairs, "all": whole}.items()}

    def strongest(self, n: int = SHOWN, by: str = "estimate") -> list[Patch]:
        """The tokens with the largest numbers, whatever their signs, largest first.

        Args:
            n: how many.
            by: "estimate" or "effect".

        Raises:
            InputError: another `by`, or effects were not asked for.
        """
        if by not in ("estimate", "effect") or not getattr(self, by):
            raise InputError(f'the strongest are those by="estimate", or by="effect" with effects=True, not {by!r}.')
        found: list[Patch] = []
        for cut, names in self.nodes.items():
            effects = self.effect[cut].tolist() if self.effect else [None] * len(names)
            found += map(Patch, names, (a["name"] for a in self.about[cut]), self.estimate[cut].tolist(), effects)
        return sorted(found, key=lambda patch: -abs(getattr(patch, by)))[:n]

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw the numbers, a row for each cut and a column for each token: red raises the target, blue lowers it.

        Args:
            path: of a .png, .svg or .pdf; None writes none.

        Returns:
            The figure of matplotlib: the estimates, and the effects below them.

        Raises:
            InputError: matplotlib is not installed, or the file cannot be written.
        """
        from fxgrad.flows.heat import heat

        panels = {"estimate": self.estimate}
        if self.effect:
            panels[f"effect, correlation {self.correlation['all'].pearson:.3f}"] = self.effect
        longest = max(self.about.values(), key=len)
        return heat(panels, [about["name"] for about in longest], self.caption, path)

    def html(self, path: str | Path | None = None, beside: Patching | None = None) -> str:
        """A page: the numbers by cut and token, those of a token on hover, and how well estimates agree with effects.

        Args:
            path: of the file; None writes none.
            beside: the same under another policy, such as "gradient", for its estimates; the effects are the same.

        Returns:
            The page's text.

        Raises:
            InputError: `beside` is of another target, run or cuts, SciPy is not installed, or the file cannot be
                written.
        """
        from fxgrad.flows.heat_page import page

        sides = [self] if beside is None else [self, replace(beside, effect=self.effect)]
        if any((one.target, one.run, one.nodes) != (self.target, self.run, self.nodes) for one in sides):
            raise InputError("beside is of another target, run or cuts. Call fxgrad.patching with the same, but rules.")
        panels = {one._headline: one.estimate for one in sides} | ({"effect": self.effect} if self.effect else {})
        names = {
            cut: [f"{node}: {about['name']}" for node, about in zip(own, self.about[cut])]
            for cut, own in self.nodes.items()
        }
        text = page(self.caption, panels, names)
        if path is not None:
            write_text(path, text)
        return text

    @property
    def _headline(self) -> str:
        """Above the estimates: the policy, and how well they agree with the effects."""
        if not self.effect:
            return f"estimate, {self.rules}"
        found = self.correlation["all"]
        return f"estimate, {self.rules}: correlation with effects {found.pearson:.3f}, of ranks {found.spearman:.3f}"

    def to_json(self) -> str:
        """All numbers and names, as JSON."""
        cuts = [
            {
                "cut": cut,
                "tokens": [{"node": node, **about} for node, about in zip(names, self.about[cut])],
                "estimate": self.estimate[cut].tolist(),
                "effect": self.effect[cut].tolist() if self.effect else None,
            }
            for cut, names in self.nodes.items()
        ]
        known = {name: getattr(self, name) for name in ("target", "rules", "run", "clean", "corrupt")}
        return json.dumps({**known, "cuts": cuts}, ensure_ascii=False)

    @property
    def caption(self) -> str:
        """The target, its values, the run that is patched, and the policy."""
        other = "corrupt" if self.run == "clean" else "clean"
        values = f"{self.clean:.4g} clean, {self.corrupt:.4g} corrupt"
        return f"{self.target}: {values}; {other} values put into the {self.run} run, {self.rules}"

    def __str__(self) -> str:
        rows = [(p.node, p.name, *map(_number, p[2:])) for p in self.strongest()]
        return "\n".join([self.caption, "", *markdown(["node", "token", "estimate", "effect"], rows, "llrr")])


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def _correlation(estimate: Tensor, effect: Tensor) -> Correlation:
    try:
        from scipy import stats
    except ImportError as error:
        raise InputError(f'correlations need SciPy ({error}): pip install "fxgrad[linear]"') from error
    pair: Sequence[Any] = [v.double().cpu().numpy() for v in (estimate, effect)]
    if any(np.ptp(values) == 0 for values in pair):  # SciPy would warn
        return Correlation(float("nan"), float("nan"))
    return Correlation(float(stats.pearsonr(*pair).statistic), float(stats.spearmanr(*pair).statistic))
