"""Real weights on real photographs and text: measure, write the table of values, and the page made of it.

    python -m bench.evidence.real [--store build/real] [--out bench/measured/real.md] [--page]

Whatever was measured before is taken from the store; the page shows what there is.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor, nn

import fxgrad
from bench.evidence.real import completeness, encoder, mosaics, probe, weights
from bench.evidence.real.cells import ANY, NONE, POLICIES, TOGETHER, Explainer, Found, Store, alone, firsts
from bench.evidence.real.page import render
from bench.evidence.real.photographs import Photograph, central, normalized, photographs
from fxgrad.methods import Map
from fxgrad.module.converted import ConvertedModule

BATCH = 5
"""Mosaics at a time."""
PLAIN_AND_LIBRA = ("gradient", "libragrad")
"""Policies of the methods that need many runs."""


def model_of(store: Store, pictures: list[Photograph], size: int = mosaics.SIZE) -> nn.Module:
    """The backbone with the probe as its head; the probe is trained if the store has none."""
    model = weights.backbone(size=size)
    if not store.get("probe"):
        found = probe.train(weights.backbone(size=mosaics.SIZE), pictures)
        store.put("probe", {name: value.numpy() for name, value in vars(found).items()})
    kept = {name: torch.from_numpy(value) for name, value in store.get("probe").items()}
    model.head = probe.Probe(**kept).head()
    return model


def canvases(pictures: list[Photograph]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All mosaics: pixels, targets, others, and the target's tiles, bool (mosaics, 2, 2)."""
    found = [mosaics.mosaic(pictures, *pair) for pair in mosaics.pairs(len(pictures))]
    target, other = torch.tensor([[m.target, m.other] for m in found]).T
    return torch.stack([m.pixels for m in found]), target, other, torch.stack([m.own for m in found])


def grids(own: Tensor, side: int) -> Tensor:
    """The target's tiles on a grid of patches or pixels, bool (mosaics, side, side)."""
    return own.repeat_interleave(side // 2, 1).repeat_interleave(side // 2, 2)


def rated(name: str, found: Found, own: Tensor) -> dict[str, Tensor]:
    """What is kept of one method: by patches, and by pixels where it has these."""
    side = math.isqrt(found.tokens.shape[1])
    columns = rated_maps(name, found.tokens.unflatten(1, (side, side)), own)
    if found.pixels is not None:
        columns |= rated_maps(f"{name}_pixels", found.pixels, own)
    if found.total is not None:
        columns |= {f"{name}.total": found.total, f"{name}.output": found.output}
    return columns


def rated_maps(name: str, maps: Tensor, own: Tensor) -> dict[str, Tensor]:
    measured = mosaics.measured(maps, grids(own, maps.shape[-1]))
    return {f"{name}.{metric}": values for metric, values in measured.items()}


def measure(store: Store, converted: ConvertedModule, pictures: list[Photograph], policies: Sequence[str]) -> None:
    """Every method under some policies on every mosaic."""
    pixels, target, other, own = canvases(pictures)
    x = normalized(pixels)
    if not store.rows("mosaics"):
        with torch.no_grad():
            logits = torch.cat([converted(part) for part in x.split(BATCH)])
        columns = {"target": target, "other": other, "logits": logits}
        store.put("mosaics", {name: values.numpy() for name, values in columns.items()})
    alike = firsts(store, "mosaics", converted, x[:BATCH], target[:BATCH])
    trivial(store, converted, pixels, target, own)
    for policy in dict.fromkeys(alike[policy] for policy in policies):
        resume(store, policy, converted, TOGETHER, (x, target, own))


def measure_alone(store: Store, converted: ConvertedModule, pictures: list[Photograph]) -> None:
    """The methods that need many runs, under the plain gradient and libragrad."""
    pixels, target, _, own = canvases(pictures)
    for policy in PLAIN_AND_LIBRA:
        resume(store, policy, converted, {}, (normalized(pixels), target, own))


def resume(
    store: Store,
    policy: str,
    converted: ConvertedModule,
    together: Mapping[str, tuple[Callable[..., Map], str | None]],
    data: tuple[Tensor, Tensor, Tensor],
) -> None:
    """One policy's methods on the mosaics that are not measured yet; without methods, those that run alone."""
    name = f"mosaics.{policy}" if together else f"mosaics.{policy}.alone"
    under = converted.under(policy)
    explain = Explainer(under, together)
    start, (x, target, own) = time.perf_counter(), data
    for at in range(store.rows(name), len(x), BATCH):
        rows = slice(at, at + BATCH)
        found = explain(x[rows], target[rows]) if together else alone(under, x[rows], target[rows])
        columns: dict[str, Tensor] = {}
        for method, numbers in found.items():
            columns |= rated(method, numbers, own[rows])
        store.extend(name, columns)
    print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)


def trivial(store: Store, converted: ConvertedModule, pixels: Tensor, target: Tensor, own: Tensor) -> None:
    """Maps of the picture alone, and methods that take no gradient."""
    if store.rows(f"mosaics.{ANY}"):
        return
    columns: dict[str, Tensor] = {}
    for name in mosaics.BASELINES:
        columns |= rated_maps(name, mosaics.baseline(name, pixels), own)
    for name in NONE:
        parts = [
            fxgrad.attribute(converted, (normalized(x),), target=t, method=name).patches
            for x, t in zip(pixels.split(BATCH), target.split(BATCH))
        ]
        columns |= rated_maps(name, torch.cat(parts), own)
    store.extend(f"mosaics.{ANY}", columns)


def facts(store: Store, pictures: list[Photograph]) -> None:
    """What the page says of the run itself."""
    if store.get("facts"):
        return
    versions = [f"{module.__name__} {module.__version__}" for module in (torch, timm)]
    packages = [
        f"{name} {version(name)}" for name in (weights.PACKAGE, encoder.PACKAGE, "scikit-image", "transformers")
    ]
    lines = [f"Python {platform.python_version()}", *versions, *packages, platform.machine()]
    x = normalized(torch.stack([central(p.whole, mosaics.SIZE) for p in pictures[:3]]))
    found = {
        "versions": np.array(lines),
        "photographs": np.array([p.name for p in pictures]),
        "witness": np.array(weights.witness(x)),
    }
    store.put("facts", found)


def table_of(store: Store) -> dict[str, np.ndarray]:
    """All that was measured: file/array -> values; cells that were not measured to the end are left out."""
    rows = {"mosaics": store.rows("mosaics"), "text": store.rows(f"text.{ANY}")}
    table: dict[str, np.ndarray] = {}
    for name in sorted(path.stem for path in store.folder.glob("*.npz")):
        part, dot, _ = name.partition(".")
        if dot and part in rows and store.rows(name) != rows[part]:
            continue
        skipped = ("weight", "bias") if name == "probe" else ()
        table |= {f"{name}/{key}": values for key, values in store.get(name).items() if key not in skipped}
    return table


def write(store: Store, out: Path) -> None:
    """The table, and the page that is made of it."""
    table = table_of(store)
    np.savez_compressed(out.with_suffix(".npz"), **table)
    out.write_text(render(table), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("build/real"), help="folder of what has been measured")
    parser.add_argument(
        "--out", type=Path, default=Path("bench/measured/real.md"), help="the page; its table lies beside"
    )
    parser.add_argument("--page", action="store_true", help="measure nothing: write what the store has")
    chosen = parser.parse_args()
    if chosen.page:
        write(Store(chosen.store), chosen.out)
        return
    warnings.simplefilter("ignore", fxgrad.IncompleteWarning)  # the plain gradient's shares never add up
    store, pictures = Store(chosen.store), photographs()
    facts(store, pictures)
    model = model_of(store, pictures)
    converted = fxgrad.convert(model, (torch.zeros(2, 3, mosaics.SIZE, mosaics.SIZE),))
    steps: list[Callable[[], None]] = [
        lambda: measure(store, converted, pictures, PLAIN_AND_LIBRA),
        lambda: encoder.measure(store, PLAIN_AND_LIBRA),
        lambda: completeness.measure(store, lambda size: model_of(store, pictures, size), pictures),
        lambda: encoder.measure(store, POLICIES),
        lambda: measure(store, converted, pictures, POLICIES),
        lambda: measure_alone(store, converted, pictures),
    ]
    for step in steps:
        step()
        write(store, chosen.out)
