"""Compare two commits model by model: the same decisions, sources, forward bits, gradients and completeness errors?

    PYTHONPATH=OLD_CHECKOUT python bench/tables/commits.py record old.json
    PYTHONPATH=NEW_CHECKOUT python bench/tables/commits.py record new.json
    python bench/tables/commits.py compare old.json new.json

It is run as a file: with -m the current directory's fxgrad would come before that of PYTHONPATH.

The models are one of every family of the zoo's suites, the cheapest first, in float64 with all parameters perturbed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

SUITES = {"transformers": 60, "timm-families": 36, "torchvision": 8}
"""Suite -> how many of its families."""
SLOW = ("timm-families", "torchvision")
"""Suites whose models are whole ones: of these, those that the zoo's table says are quick."""


def cases(measured: Path) -> Iterator[Any]:
    """One case of every family; of suites of whole models, the families that took the least time."""
    from fxgrad.zoo.suites import suite

    for name, count in SUITES.items():
        families: dict[str, Any] = {}
        found = suite(name)
        if name in SLOW:
            seconds = _seconds(measured / f"{name}.csv")
            found = sorted(found, key=lambda case: seconds.get(case.name, float("inf")))
        for case in found:
            families.setdefault(case.family, case)
        yield from list(families.values())[:count]


def _seconds(path: Path) -> dict[str, float]:
    import csv

    with path.open(newline="") as file:
        return {row["model"]: float(row["seconds"] or "inf") for row in csv.DictReader(file)}


def record(case: Any) -> dict[str, Any]:
    """What one model is turned into, as plain data."""
    import fxgrad

    torch.manual_seed(0)
    model, args, kwargs, _, through_no_grad = case.build()
    _perturb(model)
    model = model.double().eval()
    args, kwargs = pytree.tree_map(_double, (args, kwargs))
    try:
        libra = fxgrad.convert(model, args, kwargs, through_no_grad=through_no_grad)
        report = fxgrad.check(libra, args, kwargs, original=model)
    except fxgrad.FxgradError as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    leaves = pytree.tree_map(_wanting, (args, kwargs))
    embedded = libra.embed(*args, **kwargs)
    outputs = libra.forward_from(embedded, *leaves[0], **leaves[1]) if embedded else libra(*leaves[0], **leaves[1])
    leaves_out = pytree.tree_leaves(outputs)
    found = [v for v in leaves_out if isinstance(v, Tensor)]
    refused = {refusal.index for refusal in getattr(libra.classified, "refusals", ())}
    balanced = [v for i, v in enumerate(leaves_out) if isinstance(v, Tensor) and i not in refused]
    ends = [v for v in balanced if v.requires_grad]
    starts = [v for v in pytree.tree_leaves((leaves, embedded)) if isinstance(v, Tensor) and v.requires_grad]
    total = sum((v * _noise(v)).sum() for v in ends)
    gradients = torch.autograd.grad(total, starts, allow_unused=True)
    return {
        "decisions": json.loads(libra.report.to_json()),
        "sources": {name: d.sources for name, d in libra.classified.decisions.items()},
        "forward": _digest(found),
        "identical": report.forward_identical,
        "gradients": _digest([g for g in gradients if g is not None]),
        "completeness": report.completeness_error,
    }


def _perturb(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def _double(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _wanting(leaf: Any) -> Any:
    floating = isinstance(leaf, Tensor) and leaf.is_floating_point()
    return leaf.detach().clone().requires_grad_() if floating else leaf


def _noise(like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(like)


def _digest(tensors: list[Tensor]) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(
            tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        )
    return found.hexdigest()


def compare(old: dict[str, Any], new: dict[str, Any]) -> str:
    """A Markdown table of the two, and every difference below it."""
    names = [name for name in old["models"] if name in new["models"]]
    keys: dict[str, Callable[[Any, Any], bool]] = {
        "refusal": lambda a, b: a.get("refused") == b.get("refused"),
        "decisions": lambda a, b: _plain(a) == _plain(b),
        "idioms' reasons": lambda a, b: a.get("decisions") == b.get("decisions"),
        "sources": lambda a, b: a.get("sources") == b.get("sources"),
        "forward bits": lambda a, b: a.get("forward") == b.get("forward"),
        "gradient bits": lambda a, b: a.get("gradients") == b.get("gradients"),
        "completeness error": lambda a, b: a.get("completeness") == b.get("completeness"),
    }
    families = {old["models"][name]["family"] for name in names}
    lines = [f"{len(names)} models of {len(families)} families", "", "| compared | same | differ |", "|---|--:|--:|"]
    different: list[str] = []
    for key, same in keys.items():
        differ = [name for name in names if not same(old["models"][name], new["models"][name])]
        lines.append(f"| {key} | {len(names) - len(differ)} | {len(differ)} |")
        different += [f"{name}: {key}: {_difference(key, old['models'][name], new['models'][name])}" for name in differ]
    return "\n".join([*lines, "", *different])


def _plain(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The decisions, without what an idiom adds to a reason."""
    return [{**row, "reason": row["reason"].partition(";")[0]} for row in found.get("decisions", [])]


def _difference(key: str, old: dict[str, Any], new: dict[str, Any]) -> str:
    if key == "refusal":
        return f"{old.get('refused', 'converts')[:160]!r} -> {new.get('refused', 'converts')[:160]!r}"
    if key in ("decisions", "idioms' reasons"):
        old, new = ({"decisions": _plain(found)} if key == "decisions" else found for found in (old, new))
        key = "decisions"
        changed = [(a, b) for a, b in zip(old.get(key, []), new.get(key, [])) if a != b]
        first = [(k, changed[0][0][k], changed[0][1][k]) for k in changed[0][0] if changed[0][0][k] != changed[0][1][k]]
        return f"{len(changed)} rows, first {changed[0][0]['node']}: {first}" if changed else "another number of rows"
    if key == "sources":
        return str(
            [(k, v, new.get(key, {}).get(k)) for k, v in old.get(key, {}).items() if v != new.get(key, {}).get(k)][:2]
        )
    if key == "completeness error":
        return f"{old.get('completeness')} -> {new.get('completeness')}"
    return "bits differ"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("file", type=Path)
    recording.add_argument("--measured", type=Path, default=Path("bench/measured/zoo"), help="folder of the zoo's CSVs")
    comparing = commands.add_parser("compare")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    chosen = parser.parse_args()
    if chosen.command == "compare":
        print(compare(json.loads(chosen.old.read_text()), json.loads(chosen.new.read_text())))
        return
    torch.set_num_threads(1)
    models: dict[str, Any] = {}
    for case in cases(chosen.measured):
        start = time.perf_counter()
        try:
            models[case.name] = record(case)
        except Exception as error:  # the model's own, in either commit
            models[case.name] = {"refused": f"{type(error).__name__}: {error}"}
        models[case.name]["family"] = case.family
        print(f"{case.name}: {time.perf_counter() - start:.1f} s", flush=True)
        chosen.file.write_text(json.dumps({"models": models}))
    print(Counter("refused" in found for found in models.values()))


if __name__ == "__main__":
    main()
