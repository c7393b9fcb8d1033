"""What many methods cost: counted on a small model, and on the page as it was written."""

from __future__ import annotations

from pathlib import Path

import timm
import torch

import fxgrad
from bench.tables import many_methods
from bench.tables.many_methods import POLICIES, SHARING, STEPPED, TOGETHER, Passes, passes, section

PAGE = Path(__file__).parents[2] / "bench" / "measured" / "paper-cost.md"


def test_one_run_serves_all_methods_of_a_small_model() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=32).eval()
    x = torch.randn(1, 3, 32, 32)
    some = ["gradient", "fullgrad_plus", "rollout"]
    seconds, found = passes(fxgrad.convert(model, x), x, rounds=1, methods=some)
    assert seconds > 0 and list(found) == [*some, TOGETHER]
    assert (found["gradient"].forward, found["gradient"].backward) == (1, 1) and found["rollout"].backward == 0
    # The contributions of constants call the convolution once more.
    assert found[TOGETHER].forward <= 2 and found[TOGETHER].backward == 1
    assert found["gradient"].operations < found[TOGETHER].operations < 2


def test_a_picture_costs_what_its_policies_cost() -> None:
    each = {name: Passes(1, 1, 0.5, 0.5) for name in (*SHARING, TOGETHER)}
    policies = {policy: {TOGETHER: 1.0, **dict.fromkeys(STEPPED, 10.0)} for policy in POLICIES}
    text = "\n".join(section(2.0, each, policies))
    assert f"| all of these, one by one | {len(SHARING)} | {len(SHARING)} | {len(SHARING) / 2:.2f} |" in text
    assert "| all policies | 8.0 | 80.0 | 80.0 | 168.0 |" in text
    assert f"168 s a picture, so {168000 / 3600:.0f} for 1,000" in text and "8 s a picture, and 2.2 for 1,000" in text


def test_the_written_page_keeps_the_bar() -> None:
    """All methods that one run serves cost at most two plain forward and backward passes."""
    text = PAGE.read_text("utf-8")
    row = next(line for line in text.splitlines() if line.startswith(f"| {TOGETHER} |"))
    forward, backward, operations, time = (float(cell) for cell in row.strip("|").split("|")[1:])
    assert forward <= 2 and backward == 1 and operations < 2 and time < 2
    assert many_methods.MODEL in text
