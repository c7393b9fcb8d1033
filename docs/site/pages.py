"""Which files become pages of the site: a hook of MkDocs, which `make site` runs.

The site mirrors the repository, so that a link in a page works on both. Pages are the Markdown files that people read,
and the notebooks. Of what they link to, source files and folders become pages, too; pictures and tables are copied. The
reference is made of the docstrings of what `__all__` names.
"""

from __future__ import annotations

import ast
import base64
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbconvert
from mkdocs.structure.files import File, Files, InclusionLevel

from fxgrad.methods import METHODS
from fxgrad.zoo.rows import Row, read

ROOT = Path(__file__).parents[2]
PAGES = ["*.md", "docs/*.md", "docs/examples/*.md", "rules/*.md", "bench/measured/*.md", "bench/measured/results/*.md"]
STATIC = ["docs/site/*.css", "docs/site/*.js", "docs/site/*.svg"]
NOTEBOOKS = ["docs/examples/*.ipynb"]
SOURCES = {"": "text", ".py": "python", ".toml": "toml", ".js": "js", ".mjs": "js", ".html": "html", ".css": "css"}
SOURCES |= {".json": "json", ".cpp": "cpp", ".txt": "text", ".yaml": "yaml", ".yml": "yaml", ".cff": "yaml"}
REFERENCE = {
    "fxgrad": "fxgrad",
    "methods": "fxgrad.methods",
    "text": "fxgrad.text",
    "metrics": "fxgrad.metrics",
    "evaluate": "fxgrad.evaluate",
    "data": "fxgrad.data",
    "zoo": "fxgrad.zoo",
}
LINK = re.compile(r"(\]\()(?!\w+:|#)([^)#\s]+)")
HTML_LINK = re.compile(r"(<a href=\")(?!\w+:|#)([^\"#]+)")
UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n"
TOO_LONG_TO_SEARCH = re.compile(r"bench/measured/(architectures|results/.*)\.md")


def on_files(files: Files, config: Any) -> Files:
    """The theme's own files, the pages, what they link to, the reference, and the table of models."""
    chosen = Files([file for file in files if file.src_dir != config.docs_dir])
    pages = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    notebooks = [path for pattern in NOTEBOOKS for path in sorted(ROOT.glob(pattern))]
    for path in [*pages, *(path for pattern in STATIC for path in sorted(ROOT.glob(pattern)))]:
        chosen.append(File(_name(path), str(ROOT), config.site_dir, use_directory_urls=True))
    for path in notebooks:
        chosen.append(File.generated(config, _name(path) + ".md", content=_notebook(path)))
    for path in _linked(pages, notebooks):
        if not (path.is_file() or path.is_dir()):
            continue  # MkDocs says which page links to nothing
        if path.is_dir() or path.suffix in SOURCES:
            text = _folder(path) if path.is_dir() else _source(path)
            inclusion = InclusionLevel.NOT_IN_NAV
            chosen.append(File.generated(config, _name(path) + ".md", content=text, inclusion=inclusion))
        elif chosen.get_file_from_path(_name(path)) is None:
            chosen.append(File(_name(path), str(ROOT), config.site_dir, use_directory_urls=True))
    for name, module in REFERENCE.items():
        chosen.append(File.generated(config, f"reference/{name}.md", content=_reference(module)))
    chosen.append(File.generated(config, "docs/site/models.json", content=json.dumps(_models(), allow_nan=False)))
    return chosen


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """What a host of the repository does by itself: links to files and folders show them; what is folded is Markdown.

    Long tables of numbers are left out of the search for words.
    """
    if TOO_LONG_TO_SEARCH.fullmatch(page.file.src_uri):
        page.meta["search"] = {"exclude": True}
    folder = (ROOT / page.file.src_uri).parent

    def led(match: re.Match[str]) -> str:
        shown = files.get_file_from_path(_name((folder / match[2]).resolve()) + ".md")
        return f"{match[1]}{match[2].rstrip('/')}{'.md' if shown else ''}"

    markdown = HTML_LINK.sub(rf"\1{'' if page.is_index else '../'}\2", markdown)  # MkDocs leaves these as they are
    return LINK.sub(led, markdown.replace("<details>", "<details markdown>"))


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


def _linked(pages: list[Path], besides: list[Path]) -> Iterator[Path]:
    """What pages link to that is no page, once each."""
    seen = {*pages, *besides}
    for page in pages:
        text = page.read_text("utf-8")
        for _, target in LINK.findall(text) + HTML_LINK.findall(text):
            path = (page.parent / target).resolve()
            if path not in seen and path.is_relative_to(ROOT):
                seen.add(path)
                yield path


def _source(path: Path) -> str:
    return f"{UNSEARCHED}# {_name(path)}\n\n````{SOURCES[path.suffix]}\n{path.read_text('utf-8')}````\n"


def _folder(path: Path) -> str:
    names = (p.name + "/" * p.is_dir() for p in sorted(path.iterdir()) if not p.name.startswith((".", "__pycache__")))
    return f"{UNSEARCHED}# {_name(path)}\n\n" + "".join(f"- `{name}`\n" for name in names)


def _notebook(path: Path) -> str:
    """The notebook's cells and outputs, as Markdown; its pictures inside of it."""
    exporter = nbconvert.MarkdownExporter(exclude_input_prompt=True)
    text, resources = exporter.from_filename(str(path))
    for name, data in resources["outputs"].items():
        text = text.replace(f"({name})", f"(data:image/png;base64,{base64.b64encode(data).decode()})")
    return text


def _reference(module: str) -> str:
    """Its docstring, and that of every name in its `__all__`: functions first, errors last."""
    path = ROOT / module.replace(".", "/") / "__init__.py"
    tree = ast.parse(path.read_text("utf-8"))
    exported = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    listed = "".join(_shown(f"{module}.{name}") for name in sorted(exported, key=_place))
    if module == "fxgrad.methods":
        listed += "\n## The methods\n"
        listed += "".join(_shown(f"{f.__module__}.{name}", level=3) for name, f in METHODS.items())
    return f"# {module}\n\n::: {module}\n    options: {{show_root_heading: false, members: false}}\n{listed}"


def _place(name: str) -> tuple[bool, bool, str]:
    return name.endswith(("Error", "Warning")), not name.islower(), name


def _shown(name: str, level: int = 2) -> str:
    return f"\n::: {name}\n    options: {{heading_level: {level}}}\n"


def _models() -> list[dict[str, Any]]:
    """Every measured model: what the search of supported.md shows."""
    return [_model(row) for path in sorted((ROOT / "bench/measured/zoo").glob("*.csv")) for row in read(path)]


def _model(row: Row) -> dict[str, Any]:
    return {
        "model": row.model,
        "family": row.family,
        "passed": row.passed,
        "counted": row.counted,
        "error": _finite(row.completeness_error),
        "plain": _finite(row.plain_error),
        "reduced": row.reduced,
        "reason": row.reason,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
