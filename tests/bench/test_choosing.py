"""The page "Which method when": up to date, and its advice is what the values of every picture say."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from bench.tables import choosing
from fxgrad.evaluate.values import read_values

MEASURED = choosing.ROOT / "bench" / "measured"


def test_page_is_up_to_date() -> None:
    assert choosing.PAGE.read_text("utf-8") == choosing.page(), "run `make docs`"


def test_the_tables_first_is_the_values_first() -> None:
    """The order of the methods by Shapley values, from each canvas's own number."""
    (found,) = read_values(MEASURED / "evidence" / "shapley.npz")
    values = defaultdict(list)
    for (_, policy, method), metrics in found.values.items():
        if policy == "libragrad":
            values[method] += metrics["shapley"].values()
    order = sorted(values, key=lambda method: -np.nanmean(values[method]))
    assert f"| the tokens that a ViT's logit comes from | `{order[0]}` or `{order[1]}`, " in choosing.page()


def test_the_best_on_photographs_is_the_best_of_real_npz() -> None:
    with np.load(MEASURED / "real.npz", allow_pickle=False) as table:
        means = {
            (policy, method): float(np.nanmean(table[f"mosaics.{policy}/{method}.focus"]))
            for policy in ("gradient", "libragrad")
            for method in ("gradcam_plus", "xgradcam_plus", "hirescam", "fullgrad", "fullgrad_plus", "attcat", "genatt")
        }
    policy, method = max(means, key=lambda key: means[key])
    assert policy == "gradient"
    assert (
        f"| which part of a photograph speaks for a class | `{method}`, under the plain `gradient` |" in choosing.page()
    )
    balanced = max(means, key=lambda key: means[key] if key[0] == "libragrad" else 0)[1]
    assert f"| the same, but balanced | `{balanced}`, under `libragrad` |" in choosing.page()


def test_a_table_is_read_as_it_stands() -> None:
    text = "# A\n\n## One\n\nwords\n\n| m | x |\n| --- | ---: |\n| a | 0.5 [0.4, 0.6] ▲ |\n| b |  |\n\n| other |\n"
    rows = choosing.table(text, "## One")
    assert rows == [{"m": "a", "x": "0.5 [0.4, 0.6] ▲"}, {"m": "b", "x": ""}]
    assert choosing.number(rows[0]["x"]) == 0.5
