"""The page of patching: every number on hover, both policies' estimates, and how well they agree with the effects."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from timm.models import VisionTransformer

import fxgrad
from fxgrad.data.models import randomize
from fxgrad.errors import InputError
from fxgrad.flows.heat_page import page
from fxgrad.flows.patched import Patching


@cache
def made(policy: str = "libragrad", effects: bool = True, target: int = 2) -> Patching:
    torch.manual_seed(0)
    net = VisionTransformer(img_size=32, patch_size=16, embed_dim=16, depth=2, num_heads=2, num_classes=5)
    randomize(net.double().eval(), 0)
    clean, corrupt = torch.randn(2, 1, 3, 32, 32).double()
    libra = fxgrad.convert(net, (clean,)).under(policy)
    return fxgrad.patching(libra, clean, corrupt, target=target, effects=effects)


def test_every_number_is_on_the_page(tmp_path: Path) -> None:
    found, plain = made(), made("gradient")
    text = found.html(tmp_path / "a.html", beside=made("gradient", effects=False))
    assert (tmp_path / "a.html").read_text("utf-8") == text and not re.search(r"(src|href)=", text)
    heads = re.findall(r"<h4>(.*?)</h4>", text)
    for head, one in zip(heads, (found, plain)):
        agree = one.correlation["all"]
        numbers = f"correlation with effects {agree.pearson:.3f}, of ranks {agree.spearman:.3f}"
        assert head == f"estimate, {one.rules}: {numbers}"
    assert len(heads) == 3 and heads[2] == "effect"
    titles = [html.unescape(title).split("\n") for title in re.findall(r"<title>([^<]*)</title></rect>", text)]
    wanted = [
        [
            f"{node}: {found.about[cut][i]['name']}",
            *(
                f"{h.partition(':')[0]}: {float(v[cut][i]):.4g}"
                for h, v in zip(heads, (found.estimate, plain.estimate, found.effect))
            ),
        ]
        for cut, nodes in found.nodes.items()
        for i, node in enumerate(nodes)
    ]
    assert titles == wanted * 3


def test_without_effects_and_alone() -> None:
    text = made(effects=False).html()
    assert re.findall(r"<h4>(.*?)</h4>", text) == ["estimate, libragrad"]
    assert len(re.findall("<rect ", text)) == sum(map(len, made().nodes.values()))


def test_colours_are_of_signs_and_sizes() -> None:
    numbers = {"a": torch.tensor([1.0, -0.5, 0.0]), "b": torch.tensor([0.0])}
    text = page("<t>", {"estimate": numbers}, {"a": ["x", "y", "z"], "b": ["&"]})
    fills = re.findall(r'fill="rgba\((\d+), \d+, (\d+), ([\d.]+)\)"', text)
    assert int(fills[0][0]) > int(fills[0][1]) and int(fills[1][0]) < int(fills[1][1])  # red, then blue
    assert [float(strength) for *_, strength in fills] == pytest.approx([1, 0.5 / 0.985, 0, 0], abs=1e-3)
    assert "&lt;t&gt;" in text and "<t>" not in text and "&amp;\n" in text
    assert "0.000" in page("t", {"estimate": {"a": torch.zeros(2)}}, {"a": ["x", "y"]})


def test_what_it_refuses() -> None:
    for other in (made(target=1), replace(made(), run="corrupt"), replace(made(), nodes={})):
        with pytest.raises(InputError, match="beside is of another target, run or cuts"):
            made().html(beside=other)
