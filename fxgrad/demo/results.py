"""The measurements of the demo's models: a JSON file, and a page written from it."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fxgrad
from fxgrad.demo.canvases import canvas
from fxgrad.demo.model import preprocess
from fxgrad.demo.models import MODELS
from fxgrad.demo.score import in_colour
from fxgrad.report import markdown

_PAGE = """# The demo's models

Written by `make train`, from [models.json](models.json). Small models of eight architectures, in timm's own classes,
and ViT in four sizes. They read canvases of 48 x 48 pixels, cut into 64 patches, with two handwritten digits and
clutter; CLIP's are in colour. Each is a MODEL of the command line: `fxgrad check fxgrad.demo.models:deit3`.

No model is told where the digits are. `vit` is trained from scratch. The others start from its weights wherever a name
and a shape agree (*inherited*, the share of the parameters), with the rest random: relatives, not eight independent
witnesses. And they get hints from it: what a linear map makes of their tokens behind a block half-way, and behind the
last, is drawn towards `vit`'s tokens there ([FitNets](https://arxiv.org/abs/1412.6550)); the map is thrown away. CLIP
gets hints for the first half only, as `vit` knows no colours.

{table}

- *Both digits*: held-out canvases ({count} of them, of scans that training never saw) whose two largest logits are
  those of the two digits shown. *Exact*: all ten labels right, where a logit above 0 names a digit.
- *Canvases*: seen in training; *epochs*: times over the same ones. *Seconds*: processor time of one thread, on a
  machine shared with others.
- *Completeness error*: |logit - attributions - sources| over |logit|, in float32, of the logit of each digit shown on
  the first {pictures} held-out canvases: the mean and the largest, with the logit that this is of; mean under the plain
  gradient. A digit that is missed has a logit near 0, what is rounded in summands of both signs is large beside it.

{notes}
"""


def measure(model: nn.Module, count: int = 20) -> dict[str, Any]:
    """A trained model's size, its completeness errors on held-out canvases, and the versions of the packages.

    Args:
        model: a model of the demo.
        count: number of canvases; the logits of both digits of each are attributed.

    Raises:
        FxgradError: the model cannot be converted.

    Example:
        >>> from fxgrad.demo.models import vit_tiny
        >>> found = measure(vit_tiny(weights=False), count=1)
        >>> found["parameters"], found["libragrad_largest"] < 1e-4
        (20778, True)

    Source: FullGrad (Srinivas & Fleuret, NeurIPS 2019, arXiv:1905.00780), eq. 1.
    """
    found: dict[str, list[fxgrad.CheckReport]] = {"libragrad": [], "gradient": []}
    canvases = [canvas(i, colours=in_colour(model)) for i in range(count)]
    libra = fxgrad.convert(model, (preprocess(canvases[0].image),))
    modules = {"libragrad": libra, "gradient": libra.under("gradient")}
    for shown in canvases:
        x = preprocess(shown.image)
        for onehot in torch.eye(10)[list(shown.labels), None]:
            for rules, module in modules.items():
                found[rules].append(fxgrad.check(module, (x,), cotangent=onehot))
    facts: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters()), "pictures": count}
    for rules, reports in found.items():
        worst = max(reports, key=lambda report: report.completeness_error)
        facts[f"{rules}_mean"] = sum(report.completeness_error for report in reports) / len(reports)
        facts[f"{rules}_largest"], facts[f"{rules}_largest_at"] = worst.completeness_error, worst.output
    return facts | {package: metadata.version(package) for package in ("torch", "timm")}


def record(results: Path, name: str, facts: dict[str, Any]) -> None:
    """Add a model's measurements to a JSON file, and rewrite the page beside it."""
    known = json.loads(results.read_text("utf-8")) if results.exists() else {}
    known[name] = facts
    results.write_text(json.dumps(known, indent=1) + "\n", "utf-8")
    results.with_suffix(".md").write_text(page(known), "utf-8")


def page(results: dict[str, dict[str, Any]]) -> str:
    """The Markdown page of the results that `record` stores."""
    heads = [
        "model",
        "parameters",
        "inherited",
        "both digits",
        "exact",
        "canvases",
        "epochs",
        "seconds",
        "seed",
        "torch",
        "timm",
    ]
    heads += ["libragrad, mean", "largest", "at logit", "plain, mean"]
    rows: list[list[object]] = []
    for name in (n for n in MODELS if n in results):
        f = results[name]
        seconds = f.get("seconds")
        cells: list[object] = [
            name,
            f"{f['parameters']:,}",
            f"{f['inherited']:.1%}",
            f"{f['both']:.1%}",
            f"{f['exact_match']:.1%}",
            f"{f['canvases']:,}",
            f"{f['epochs']:.1f}",
        ]
        cells += [f"{seconds:,}" if seconds else "", f["seed"], f["torch"], f["timm"]]
        cells += [f"{f[key]:.1e}" for key in ("libragrad_mean", "libragrad_largest")]
        cells += [f"{f['libragrad_largest_at']:.2f}", f"{f['gradient_mean']:.2f}"]
        rows.append(cells)
    notes = [f"`{name}`: {f['note']}" for name, f in results.items() if "note" in f]
    any_one = next(iter(results.values()))
    counts = {"count": f"{any_one['heldout_canvases']:,}", "pictures": any_one["pictures"]}
    return _PAGE.format(table="\n".join(markdown(heads, rows)), notes="\n".join(notes), **counts).strip() + "\n"
