"""Documentation runs: every Python block of every page, and generated pages are up to date."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import timm
from click.testing import CliRunner

from bench.tables import paper_cost, rules
from fxgrad.commands.cli import main
from fxgrad.evaluate.protocol import protocol
from fxgrad.table.loading import load

ROOT = Path(__file__).parent.parent
FOLDERS = ("docs", "rules", "bench/measured")
PAGES = [*sorted(ROOT.glob("*.md")), *(page for folder in FOLDERS for page in sorted((ROOT / folder).rglob("*.md")))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^[ ]*```{language}\n(.*?)^[ ]*```", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_blocks_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)


def test_readme_has_something_to_run() -> None:
    assert "fxgrad.convert" in "".join(blocks(ROOT / "README.md", "python"))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_toml_blocks_load(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "toml"):
        (tmp_path / "rows.toml").write_text(re.sub(r"^ +", "", block, flags=re.MULTILINE))
        assert load(tmp_path / "rows.toml").rows


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


def commands(page: str) -> list[list[str]]:
    text = "".join(blocks(ROOT / "docs" / page, "text"))
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("fxgrad ")]


@pytest.mark.parametrize("arguments", commands("paper.md"), ids=lambda a: " ".join(a[:4]))
def test_commands_of_the_paper_s_page_are_understood(arguments: list[str]) -> None:
    """Those of evaluate say what they run; of the others, arguments and options are read."""
    if arguments[0] == "evaluate":
        result = CliRunner().invoke(main, [*arguments, "--show"])
        assert result.exit_code == 0 and result.stdout.startswith("LibraGrad's experiments, part "), result.output
    else:
        command = main.get_command(click.Context(main), arguments[0])
        assert command is not None and command.make_context(arguments[0], arguments[1:])


def test_the_paper_s_page_has_every_part_and_the_models_that_timm_has() -> None:
    page = (ROOT / "docs" / "paper.md").read_text("utf-8")
    parts = protocol("libragrad").parts
    used = {a[a.index("--protocol") + 1].partition(":")[2] for a in commands("paper.md") if "--protocol" in a}
    assert used == set(parts) and all(f"`{part}`" in page for part in parts)
    rows = dict(re.findall(r"^\| ([^|]*?) \| `([a-z0-9_]+\.[a-z0-9_]+)` \|$", page, flags=re.MULTILINE))
    assert {name.partition(" ")[0]: tag for name, tag in rows.items()} == paper_cost.MODELS
    assert set(rows.values()) <= set(timm.list_pretrained())
    assert all(f"`{ours}`" in page for ours in protocol("libragrad").policies.values())


def test_rules_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "rules.md").read_text("utf-8") == rules.page(), "run `make docs`"


def test_docs_are_pages_and_examples_and_the_site_s_setting() -> None:
    assert all(path.suffix == ".md" or path.name in ("examples", "site") for path in (ROOT / "docs").iterdir())


def test_architecture_page_lists_every_folder() -> None:
    table = (ROOT / "docs" / "architecture.md").read_text("utf-8").split("## The folders")[1].split("## ")[0]
    rows = re.findall(r"^\| (.*?) \| .* \| (?:`(.*)`)? *\|$", table, flags=re.MULTILINE)
    named = {name: main for cell, main in rows for name in re.findall(r"`([a-z0-9_]+(?:/|\.py))`", cell)}
    folders = {f"{path.parent.name}/" for path in (ROOT / "fxgrad").glob("*/__init__.py")}
    assert {name for name in named if name.endswith("/")} == folders
    assert all(
        (ROOT / "fxgrad" / name / main if name.endswith("/") else ROOT / "fxgrad" / name).exists()
        for name, main in named.items()
    )
