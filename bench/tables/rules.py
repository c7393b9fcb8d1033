"""Write docs/rules.md from the rule tables: `make docs`."""

from __future__ import annotations

from pathlib import Path

from fxgrad.kinds import Kind
from fxgrad.table.loading import load, presets, tomllib
from fxgrad.table.row import GRAMMAR

ROOT = Path(__file__).parents[2]


def page() -> str:
    """The Markdown page: policies by kind, then every op by kind."""
    policies = {name: load(name) for name in presets()}
    lines = [
        "# Rules",
        "",
        "Generated from `rules/` by `make docs`. How to add one: [rules/README.md](../rules/README.md).",
        "",
        "## Policies",
        "",
        "| kind | libragrad |",
        "|---|---|",
    ]
    libra = policies["libragrad"].backwards
    lines += [f"| {kind.value} | {libra[kind]} |" for kind in GRAMMAR if kind is not Kind.CONSTANT]
    lines += ["", "The others, where they differ from it:", "", "| policy | backwards |", "|---|---|"]
    for name, table in policies.items():
        other = [f"{kind.value}: {backward}" for kind, backward in table.backwards.items() if backward != libra[kind]]
        lines += [f"| {name} | {', '.join(other)} |"] if other else []
    lines += ["", *(f"- `{name}`: {table.cite}" for name, table in policies.items()), "", "## Ops"]
    # From the file: the loaded table leaves out the rows of libraries that are not imported.
    rows = tomllib.loads((ROOT / "rules" / "ops.toml").read_text("utf-8"))
    for kind in GRAMMAR:
        ops = [f"`{op}`" for op in rows[kind.value]]
        lines += ["", f"### {kind.value} ({len(ops)})", "", ", ".join(ops)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "rules.md").write_text(page(), encoding="utf-8")
