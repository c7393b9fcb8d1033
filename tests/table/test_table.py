"""The rule tables: the shipped ones are sound, and a malformed one is named by file and row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fxgrad import RuleTableError
from fxgrad.kinds import Kind
from fxgrad.table.data import from_data, to_data
from fxgrad.table.loading import load, presets
from fxgrad.table.row import GRAMMAR

POLICY = "\n".join(f'{kind.value} = "native"' for kind in Kind if kind in GRAMMAR and kind is not Kind.CONSTANT)


def test_shipped_tables_load() -> None:
    assert {"libragrad", "gradient"} <= set(presets())
    libra, plain = load(), load("gradient")
    assert libra.rows.keys() == plain.rows.keys() and len(libra.rows) > 150
    assert "arXiv:2411.16760" in libra.cite and set(plain.policy.values()) == {"native"}
    assert all(cite for cite in presets().values())


def test_an_op_may_have_a_row_for_some_arguments_and_one_for_others() -> None:
    table = load()
    for op, other in ((torch.ops.aten.scatter_reduce.two, "sum"), (torch.ops.aten.index_reduce.default, "mean")):
        rows = [table.row(op, {"reduce": reduce}) for reduce in ("prod", other, "unknown")]
        kinds = [row.kind if row else None for row in rows]
        assert kinds[:2] == [Kind.COMPOSED, Kind.PIECEWISE_LINEAR]
        assert rows[2] is not None and rows[2].refused({"reduce": "unknown"}) == "reduce"


def test_row_lookup_prefers_the_overload() -> None:
    table = load()
    aten = torch.ops.aten

    def op(overload: object) -> str | None:
        row = table.row(overload)
        return row.op if row else None

    assert op(aten.max.other) == "aten.max.other"
    assert op(aten.max.dim) == "aten.max"
    assert op(aten.add.Tensor) == op(aten.add.Scalar) == "aten.add"
    rounded = table.row(aten.div.Tensor_mode)
    assert rounded is not None and rounded.kind is Kind.CONSTANT, "rounding is not a quotient"
    assert op(aten.pow.Scalar) == "aten.pow.Scalar" and op(aten.pow.int) is None


def test_user_rows_add_to_the_shipped_ones(tmp_path: Path) -> None:
    rows = tmp_path / "mine.toml"
    rows.write_text('[squash]\n"aten.special_bessel_j1" = { carrier = "self" }\n')
    table = load(["gradient", rows])
    assert table.name == "gradient+mine" and table.rows["aten.special_bessel_j1"].kind is Kind.SQUASH
    assert load(rows).policy == load("libragrad").policy, "without a policy of its own it is libragrad's"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[lineal]\n", r"mine\.toml \[lineal\]: not a kind\. The kinds are linear, "),
        ("[linear\n", r"mine\.toml: is not TOML: "),
        ('linear = "aten.add"\n', r"mine\.toml: linear must be a section of rows, not 'aten.add'"),
        ('[linear]\n"aten.cosh" = "self"\n', r"mine\.toml \[linear\] 'aten\.cosh': a row is a table such as"),
        ('[linear]\n"aten.cosh" = {}\n', r"'aten\.cosh': carrier is missing"),
        ('[linear]\n"aten.cosh" = { carrier = 3 }\n', r"carrier must be an operand's name or a list of names, not 3"),
        ('[linear]\n"aten.cosh" = { carier = "self" }\n', r"unknown key 'carier'\. A linear row takes carrier, "),
        ('[linear]\n"aten.cosh" = { carrier = "x" }\n', r"no overload has the operands x\. Its schema: aten::cosh"),
        (
            '[linear]\n"aten.coshh" = { carrier = "self" }\n',
            r"'aten\.coshh': torch has no such op\. Import the library",
        ),
        ('[linear]\n"my.op" = { carrier = "self" }\n', r"'my\.op': torch has no such op"),
        (
            '[linear]\n"aten.add" = { carrier = "self" }\n',
            r"a second row for aten\.add, which rules/ops\.toml \[linear\] has",
        ),
        ('[power]\n"aten.cosh" = { carrier = "self" }\n', r"'aten\.cosh': degree is missing"),
        ('[power]\n"aten.cosh" = { carrier = "self", degree = true }\n', r"degree = True has the wrong type"),
        ('[squash]\n"aten.cosh" = { carrier = "self", odd = 1 }\n', r"odd = 1 has the wrong type"),
        ('[gate]\n"aten.cosh" = { carrier = "self", through = 1 }\n', r"'aten\.cosh': through .* needs secant = true"),
        ('[squash]\n"aten.ldexp.Tensor" = { carrier = "other" }\n', r"carrier must be the op's first operand"),
        ('[backward]\nattention = "native"\n', r"mine\.toml \[backward\]: no backward for linear, "),
        (f'[backward]\n{POLICY}\nlineal = "native"\n', r"\[backward\] 'lineal': not a kind that has a backward"),
        (
            f"[backward]\n{POLICY}".replace('linear = "native"', 'linear = "share"', 1),
            r"linear = 'share': must be one of native",
        ),
        ("backward = 3\n", r"mine\.toml: backward must be a section, not 3"),
    ],
)
def test_malformed_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(RuleTableError, match=message):
        load(tmp_path / "mine.toml")


def test_missing_files_and_presets(tmp_path: Path) -> None:
    with pytest.raises(
        RuleTableError, match=r"no policy 'libra'\. Shipped: .*gradient, libragrad, .*; or give the path"
    ):
        load("libra")
    with pytest.raises(RuleTableError, match=r"absent\.toml: cannot be read"):
        load(tmp_path / "absent.toml")
    with pytest.raises(RuleTableError, match=r"linear is already set by rules/gradient\.toml\. Keep one"):
        load(["gradient", "libragrad"])
    for wrong, item in ((3, "3"), (["gradient", None], "None")):
        with pytest.raises(RuleTableError, match=rf"rules is the name of a policy, .*; {item} is none of them"):
            load(wrong)  # type: ignore[arg-type]


def test_how_a_user_s_op_moves_elements_is_one_word_in_its_row(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[linear]\n"aten.swapaxes" = { carrier = "self", moves = "shuffle" }\n', "utf-8")
    with pytest.raises(
        RuleTableError, match=r"moves = 'shuffle' must be one of permute, reshape, cut, join, expand, same"
    ):
        load(["libragrad", file])
    file.write_text('[linear]\n"aten.swapaxes" = { carrier = "self", moves = "permute" }\n', "utf-8")
    table = load(["libragrad", file])
    assert table.rows["aten.swapaxes"].options["moves"] == "permute"
    data = to_data(table)
    assert data["rows"]["aten.swapaxes"]["is"]["moves"] == "permute"
    assert "moves" not in data["rows"]["aten.permute"]["is"]  # a fact about PyTorch's op: old files lack it, too
    assert from_data(data, {}, {}, set()) == table
