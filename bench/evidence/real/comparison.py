"""Tables that compare policies and methods on the same mosaics or documents."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from bench.evidence.real.cells import ALONE, ANY, POLICIES
from fxgrad.metrics import Interval
from fxgrad.report import markdown

Table = Mapping[str, np.ndarray]
Intervals = Callable[[Tensor], list[Interval]]
"""(rows, columns) -> an interval of each column's mean."""

NAMES = {
    "input_x_gradient_pixels": "Input x Gradient, by pixel",
    "input_x_gradient": "Input x Gradient, summed by patch",
    "tokens_input_x_gradient": "Input x Gradient of tokens",
    "integrated_gradients_pixels": "Integrated Gradients, by pixel",
    "integrated_gradients": "Integrated Gradients, summed by patch",
    "gradcam_plus": "Grad-CAM+",
    "xgradcam_plus": "XGrad-CAM+",
    "hirescam": "HiResCAM, last block",
    "hirescam_penultimate": "HiResCAM, block before the last",
    "fullgrad": "FullGrad",
    "fullgrad_plus": "FullGrad+",
    "attcat": "AttCAT",
    "genatt": "GenAtt",
    "gradsam": "Grad-SAM",
    "tokentm": "TokenTM",
    "raw_attention": "raw attention",
    "rollout": "attention rollout",
    "random": "random",
    "brightness": "brightness",
    "local_mean": "brightness, mean of 7 x 7",
    "sobel": "edges (Sobel)",
    "centre": "centre",
    "length": "length of the token",
}
OTHERS = POLICIES[2:]


class Cells:
    """One part of the table: a number per row (mosaic or document) for each policy and method.

    Args:
        table: all values.
        part: "mosaics" or "text".
        intervals: how its means are bounded.
        rows: which rows count, bool; all by default.
    """

    def __init__(self, table: Table, part: str, intervals: Intervals, rows: np.ndarray | None = None) -> None:
        self.table, self.part, self.intervals = table, part, intervals
        self.rows = np.ones(len(table[f"{part}/target"]), dtype=bool) if rows is None else rows

    def get(self, policy: str, method: str, metric: str) -> Tensor | None:
        """The values of a cell, float64 (rows,); None if it was not measured on all rows."""
        if metric == "ahead":
            return self.ahead(policy, method)
        if policy in POLICIES:
            policy = str(self.table.get(f"alike.{self.part}/{policy}", policy))
        for name in (f"{self.part}.{policy}", f"{self.part}.{policy}.alone"):
            values = self.table.get(f"{name}/{method}.{metric}")
            if values is not None and len(values) == len(self.rows):
                return torch.from_numpy(values[self.rows]).double()
        return None

    def ahead(self, policy: str, method: str) -> Tensor | None:
        """Whether the own side has more attribution than the other, signs counted; ties count half.

        Of a document, whose sides differ in length, more for each token.
        """
        own, others = (self.get(policy, method, key) for key in ("own", "others"))
        return None if own is None or others is None else ((own - others).sign() + 1) / 2

    def right(self, policy: str, method: str) -> Tensor | None:
        """Of a mosaic, whether most of the positive attribution is on the own side; of a document, as `ahead`."""
        share = self.get(policy, method, "focus")
        if self.part == "text" or share is None:
            return self.ahead(policy, method)
        return ((share - 0.5).nan_to_num(0.0).sign() + 1) / 2

    def mean(self, values: Tensor | None) -> str:
        """A mean with its interval; empty for a cell that was not measured."""
        return "" if values is None else shown(self.intervals(values[:, None])[0])

    def difference(self, ours: Tensor | None, theirs: Tensor | None) -> str:
        """A paired difference with its interval, marked where that leaves out 0."""
        if ours is None or theirs is None:
            return ""
        found = self.intervals((ours - theirs)[:, None])[0]
        return shown(found, "+.3f") + {1: " ▲", -1: " ▼", 0: ""}[found.sign]

    def name(self, method: str) -> str:
        """What a method is called; words are not summed by patch."""
        return NAMES[method].partition(", summed")[0] if self.part == "text" else NAMES[method]

    def methods(self, policy: str) -> list[str]:
        """The measured methods of a policy, in the order of the page."""
        return [method for method in NAMES if self.get(policy, method, "focus") is not None]

    def against(self, metric: str, head: str) -> list[str]:
        """Table of the plain gradient beside libragrad, and what takes no gradient below."""
        rows = []
        for method in self.methods("libragrad"):
            plain, ours = (self.get(policy, method, metric) for policy in ("gradient", "libragrad"))
            sides = " → ".join(f"{float(v.mean()):.0%}" for v in self.sides(method))
            rows.append([self.name(method), self.mean(plain), self.mean(ours), self.difference(ours, plain), sides])
        for method in self.methods(ANY):
            values, right = self.get(ANY, method, metric), self.right(ANY, method)
            assert right is not None
            rows.append([f"*{self.name(method)}*", self.mean(values), "", "", f"{float(right.mean()):.0%}"])
        return markdown(["method", f"{head}, plain", "libragrad", "difference", "own side"], rows, "lrrrr")

    def sides(self, method: str) -> list[Tensor]:
        found = [self.right(policy, method) for policy in ("gradient", "libragrad")]
        return [values for values in found if values is not None]

    def others(self, metric: str) -> list[str]:
        """Table of libragrad minus each other policy, paired; empty if no other was measured."""
        own = [policy for policy in OTHERS if self.distinct(policy)]
        rows = []
        for method in self.methods("libragrad"):
            ours = self.get("libragrad", method, metric)
            cells = [self.difference(ours, self.get(policy, method, metric)) for policy in own]
            if any(cells):
                rows.append([self.name(method), *cells])
        return markdown(["method", *own], rows, "l" + "r" * len(own)) if own else []

    def distinct(self, policy: str) -> bool:
        """Whether a policy was measured, and gives other numbers than libragrad."""
        pairs = [(self.get(policy, m, "focus"), self.get("libragrad", m, "focus")) for m in self.methods("libragrad")]
        return any(a is not None and b is not None and not np.array_equal(a, b, equal_nan=True) for a, b in pairs)

    def counts(self, metric: str) -> list[str]:
        """How many methods libragrad makes better, against each other policy."""
        found = [f"{policy} {self.count(metric, policy)}" for policy in OTHERS if self.distinct(policy)]
        return [f"Rows won / tied / lost against {', '.join(found)}.", ""] if found else []

    def same(self) -> list[str]:
        """Which policies were measured in another's place."""
        firsts = {policy: str(self.table.get(f"alike.{self.part}/{policy}", policy)) for policy in POLICIES}
        found = [f"{policy} (as {first})" for policy, first in firsts.items() if first != policy]
        return (
            [f"The same gradient of the first ones bit by bit, and so measured once: {', '.join(found)}.", ""]
            if found
            else []
        )

    def missing(self) -> list[str]:
        """What was planned and is not in the table."""
        left = [policy for policy in POLICIES if not self.methods(policy)]
        if self.part == "mosaics":
            left += [NAMES[method] for method in ALONE if self.get("libragrad", method, "focus") is None]
        return [f"Not measured yet (`make real` goes on where it was): {', '.join(left)}.", ""] if left else []

    def count(self, metric: str, policy: str = "gradient") -> str:
        """How many methods libragrad makes better, leaves tied and makes worse, against a policy."""
        signs = []
        for method in self.methods("libragrad"):
            ours, theirs = self.get("libragrad", method, metric), self.get(policy, method, metric)
            if ours is not None and theirs is not None:
                signs.append(self.intervals((ours - theirs)[:, None])[0].sign)
        return f"{signs.count(1)} / {signs.count(0)} / {signs.count(-1)}"


def shown(interval: Interval, form: str = ".3f") -> str:
    return f"{interval.mean:{form}} [{interval.low:{form}}, {interval.high:{form}}]"
