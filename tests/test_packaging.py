"""What is published: the built wheel works on its own, outside of the checkout; metadata and workflows are valid."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
import yaml

import fxgrad

ROOT = Path(__file__).parent.parent

SCRIPT = """
import torch, fxgrad
from fxgrad.table import presets
assert {'libragrad', 'gradient'} <= set(presets())
x = torch.randn(2, 3).double()
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.LayerNorm(4)).double().eval()
report = fxgrad.check(fxgrad.convert(model, (x,)), (x,), original=model)
assert report.passed
print(fxgrad.__file__)
"""


def needs(package: str) -> None:
    """Skip without it. Importing says too little: there is a folder `build` here."""
    try:
        version(package)
    except PackageNotFoundError:
        pytest.skip(f"needs the package {package}")


def run(*command: str | Path, cwd: Path) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST", "COV"))}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel that is built from it."""
    needs("build")
    out = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


def test_distributions_are_ready_to_be_published(built: Path) -> None:
    needs("twine")
    files = sorted(built.iterdir())
    assert [path.suffix for path in files] == [".whl", ".gz"]
    checked = run(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=built)
    assert checked.count("PASSED") == 2, checked
    (wheel,) = built.glob("*.whl")
    assert wheel.stat().st_size < 10e6


def test_the_sources_hold_what_their_tests_need(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "CITATION.cff", "mkdocs.yml", "rules/ops.toml", "docs/site/pages.py"} <= names
    assert {"tests/test_packaging.py", "bench/measured/zoo/timm.csv", ".github/workflows/tests.yml"} <= names
    assert not [name for name in names if re.search(r"(^|/)(\.venv|build|node_modules|__pycache__)(/|$)", name)]


def test_wheel_holds_rules_types_and_weights(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    rules = {f"fxgrad/rules/{path.name}" for path in (ROOT / "rules").glob("*.toml")}
    assert len(rules) >= 3 and rules <= names
    assert {"fxgrad/py.typed", "fxgrad/demo/digits_vit.safetensors"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_wheel_converts_a_model_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "env"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--quiet", wheel, cwd=tmp_path)
    # torch is 5 GB: borrow it. A path line alone does not bring this environment's editable fxgrad along.
    (site,) = (environment / "lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    where = run(python, "-c", SCRIPT, cwd=tmp_path).strip()
    assert where.startswith(str(site))


@pytest.mark.parametrize(
    ("schema", "pattern", "count"),
    [
        ("vendor.github-workflows", ".github/workflows/*.yml", 2),
        ("custom.github-workflows-require-timeout", ".github/workflows/*.yml", 2),
        ("vendor.citation-file-format", "CITATION.cff", 1),
    ],
)
def test_settings_follow_their_schemas(schema: str, pattern: str, count: int) -> None:
    needs("check-jsonschema")
    files = sorted(ROOT.glob(pattern))
    assert len(files) == count
    options = ["--builtin-schema", schema, "--default-filetype", "yaml"]
    assert run(sys.executable, "-m", "check_jsonschema", *options, *files, cwd=ROOT).strip() == "ok -- validation done"


def test_what_is_cited_is_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert (cited["title"], cited["version"], cited["license"]) == ("fxgrad", fxgrad.__version__, "MIT")
    assert (ROOT / "CHANGELOG.md").read_text("utf-8").startswith(f"# Changelog\n\n## {fxgrad.__version__}")


def test_the_oldest_versions_of_the_workflows_are_those_of_the_package() -> None:
    settings = (ROOT / "pyproject.toml").read_text("utf-8")
    (python,), (torch,) = (
        re.findall(r'requires-python = ">=([\d.]+)"', settings),
        re.findall(r'"torch>=([\d.]+)"', settings),
    )
    matrix = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text("utf-8"))["jobs"]["tests"]["strategy"][
        "matrix"
    ]
    assert matrix == {"python": [python, "3.x"], "torch": [f"torch=={torch}.*", "torch"]}
    assert f"| Python | {python} and the newest |" in (ROOT / "docs" / "versions.md").read_text("utf-8")
    assert f"| PyTorch | {torch} and the newest |" in (ROOT / "docs" / "versions.md").read_text("utf-8")


def test_every_target_that_the_pages_name_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE))
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    named = {
        name for page in pages for name in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text("utf-8"), flags=re.M)
    }
    assert {"test", "site", "demo"} <= named <= targets
