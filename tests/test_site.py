"""The documentation site: built with warnings as errors, read by a parser of our own, and searched in a browser."""

from __future__ import annotations

import csv
import functools
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import pytest

ROOT = Path(__file__).parent.parent
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
SITE = "http://site/"
REFERENCE = ("fxgrad", "fxgrad.methods", "fxgrad.metrics", "fxgrad.evaluate", "fxgrad.data", "fxgrad.zoo")


@dataclass
class Page(HTMLParser):
    """What a page links to and loads, and the places in it that can be linked to."""

    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    places: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.places |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(found["href"])
        elif "src" in found:
            self.loads.append(found["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason="needs the extra 'site'")
    out = tmp_path_factory.mktemp("site")
    assert "$(BIN)/python -m mkdocs build\n" in (ROOT / "Makefile").read_text("utf-8"), "--quiet would count no warning"
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    """Address -> page; the page of errors, whose addresses are absolute, left out."""
    found = {}
    for path in sorted(site.rglob("*.html")):
        if path.name == "404.html":
            continue
        page = Page()
        page.feed(path.read_text("utf-8"))
        found[SITE + path.relative_to(site).as_posix().removesuffix("index.html")] = page
    return found


def test_every_link_leads_to_a_page_and_a_place_on_it(site: Path, pages: dict[str, Page]) -> None:
    assert len(pages) > 30
    missing = []
    for address, page in pages.items():
        for link in page.links:
            whole = urljoin(address, link)
            parts = urlsplit(whole)
            if not whole.startswith(SITE):
                continue
            to = whole.partition("#")[0].partition("?")[0]
            if to not in pages:
                missing += [] if (site / unquote(parts.path).lstrip("/")).is_file() else [(address, link)]
            elif parts.fragment and unquote(parts.fragment) not in pages[to].places:
                missing.append((address, link))
    assert not missing


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[str, Page]) -> None:
    for address, page in pages.items():
        for load in page.loads:
            whole = urljoin(address, load)
            assert whole.startswith((SITE, "data:")), f"{address} loads {load}"
            assert whole.startswith("data:") or (site / urlsplit(whole).path.lstrip("/")).is_file(), load
    for path in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*['\"]?(?:https?:)?//", path.read_text("utf-8")), path


def test_the_reference_has_every_public_name(pages: dict[str, Page]) -> None:
    for module in REFERENCE:
        places = pages[f"{SITE}reference/{module.rpartition('.')[2]}/"].places
        assert {f"{module}.{name}" for name in importlib.import_module(module).__all__} <= places


def test_every_documented_argument_is_one() -> None:
    """The site's own check is off, since "args, kwargs" stand in one line."""
    checked = 0
    for module in REFERENCE:
        for name in importlib.import_module(module).__all__:
            value = getattr(importlib.import_module(module), name)
            section = re.search(r"^Args:\n((?:    .*\n|\n)+)", inspect.getdoc(value) or "", flags=re.MULTILINE)
            if not inspect.isfunction(value) or section is None:
                continue
            there = set(inspect.signature(value).parameters)
            for line in re.findall(r"^    ([*\w]+(?:, \w+)*):", section[1], flags=re.MULTILINE):
                checked += 1
                assert {word.lstrip("*") for word in line.split(", ")} <= there, f"{module}.{name}: {line}"
    assert checked > 50


def test_the_table_of_models_is_that_of_the_zoo(site: Path) -> None:
    models = json.loads((site / "docs" / "site" / "models.json").read_text())
    rows = [
        row
        for path in (ROOT / "bench/measured/zoo").glob("*.csv")
        for row in csv.DictReader(path.read_text().splitlines())
    ]
    assert sorted(m["model"] for m in models) == sorted(row["model"] for row in rows)
    refused = {row["model"] for row in rows if row["reason"]}
    assert {m["model"] for m in models if m["reason"]} == refused and refused
    assert not any(m["passed"] for m in models if m["model"] in refused)


def test_the_search_field_takes_no_other_page_s_place(pages: dict[str, Page]) -> None:
    assert [address for address, page in pages.items() if "model-search" in page.places] == [f"{SITE}docs/supported/"]


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    handler = functools.partial(_Silent, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.mark.skipif(not CHROMIUM, reason="needs chromium")
@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("torchvision swin_t", r"<code>torchvision:swin_t</code>.*?<td class=\"yes\">complete</td>"),
        ("mixture_of_softmax", r"<code>x-transformers:wrapper/mixture_of_softmax</code><small>NotBalanceableError"),
        ("nosuchmodel", r"None of that name was measured"),
        ("", r"[\d]+ of [\d]+ converted, forward identical and complete\."),
    ],
)
def test_a_model_is_found_in_the_browser(address: str, typed: str, shown: str) -> None:
    url = f"{address}docs/supported/?model={typed.replace(' ', '+')}"
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([*command, url], capture_output=True, text=True, timeout=60)
    assert re.search(shown, done.stdout, flags=re.DOTALL), done.stdout[-3000:] + done.stderr[-1000:]
