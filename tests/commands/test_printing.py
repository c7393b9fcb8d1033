"""What commands print fits 80 columns, at no loss where there is more room; and help comes at once.

The tests of the command line ask the same of the other commands.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.speed.startup import LIMIT, seconds
from fxgrad.commands import cli
from fxgrad.commands.printing import document, narrow, say
from fxgrad.report import Table

NET = """
from torch import nn
from torch.nn import functional as F

class Attention(nn.Module):
    default_cfg = dict(input_size=(3, 6, 8), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0)

    def __init__(self):
        super().__init__()
        self.a_rather_long_name_for_a_projection_of_patches = nn.Conv2d(3, 8, 2, 2)
        self.norm, self.qkv, self.head = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x):
        x = self.a_rather_long_name_for_a_projection_of_patches(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return self.head(F.gelu(F.scaled_dot_product_attention(q, k, v)).mean(1))
"""
CALLS = [
    ["convert", "wide:Attention"],
    ["convert", "wide:Attention", "--details"],
    ["check", "wide:Attention", "--randomize"],
    ["rules"],
    ["rules", "normalization"],
    ["rules", "--policy", "attnlrp"],
    ["zoo", "--list", "--suite", "torchvision"],
]


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with a module whose nodes have long names."""
    folder = tmp_path_factory.mktemp("wide")
    (folder / "wide.py").write_text(NET)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder
    sys.modules.pop("wide", None)


def lines(*arguments: str, columns: str = "80") -> list[str]:
    result = CliRunner(env={"COLUMNS": columns}).invoke(cli.main, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


@pytest.mark.parametrize("name", ["", *cli.COMMANDS])
def test_help_fits(name: str) -> None:
    assert max(map(len, lines(*[name] * bool(name), "--help"))) <= 80


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_output_fits(call: list[str]) -> None:
    found = lines(*call)
    assert found and max(map(len, found)) <= 80
    assert not any(line.endswith(" ") for line in found)


def test_more_room_gives_all_columns() -> None:
    wide = "\n".join(lines("check", "wide:Attention", "--randomize", columns="300"))
    tight = "\n".join(lines("check", "wide:Attention", "--randomize"))
    assert "aten.scaled_dot_product_attention.default" in wide and "inflow" in wide and "source_line" in wide
    assert "aten.gelu " in tight and "hold_gate" in tight and "inflow" not in tight
    assert "plain gradient, for comparison: completeness error" in tight


@dataclass
class Row:
    op: str
    more: str
    error: float


def test_tables_lose_no_cell_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    table = Table("Rows", [Row("aten.add.default", "y" * 90, 1 / 3), Row("x" * 50, "", 2.0)], shown=1)
    assert narrow(table, "op", "error") == "Rows\nop        error\naten.add  0.3333\n... and 1 more rows"
    both = narrow(Table("Rows", table.rows), "op", "more").splitlines()
    assert max(map(len, both)) <= 40 and "".join(both).count("x") == 50 and "".join(both).count("y") == 90
    assert narrow(Table("None", ())) == "None\n(no rows)"
    monkeypatch.setenv("COLUMNS", "200")
    assert narrow(Table("Rows", table.rows), "op") == str(Table("Rows", table.rows))


def test_long_lines_are_broken_between_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    say("wrote /a/very/long/path/of/a/file.png\n  one two three four five\n\nend")
    assert (
        capsys.readouterr().out == "wrote\n  /a/very/long/path/of/a/file.png\n  one two three four\n    five\n\nend\n"
    )
    say("one two three four five", hang=0)
    assert capsys.readouterr().out == "one two three four\nfive\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_pages_of_markdown_are_drawn_in_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"# Results\n\n{'word ' * 40}\n\n| method | {' | '.join(['policy'] * 12)} |\n|{' --- |' * 13}\n"
    text += f"| fullgrad_plus | {' | '.join(['0.123 [0.1, 0.2]'] * 12)} |\n"
    for file in (io.StringIO(), Terminal()):
        with monkeypatch.context() as patch:
            patch.setenv("COLUMNS", "80")
            patch.setattr(sys, "stdout", file)
            document(text)
        found = re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())
        assert found == text if not file.isatty() else max(map(len, found.splitlines())) <= 80
    assert "Results" in found and "word word" in found and "#" not in found


def test_help_comes_at_once() -> None:
    """The command `python -m bench.speed.startup` measures all helps."""
    assert seconds(["--help"], 3) < LIMIT
