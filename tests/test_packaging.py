"""The built wheel works on its own: rules found, a model converted, outside of the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

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


def run(*command: str | Path, cwd: Path) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST", "COV"))}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out, cwd=ROOT)
    (built,) = out.glob("*.whl")
    return built


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
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    where = run(python, "-c", SCRIPT, cwd=tmp_path).strip()
    assert where.startswith(str(site))
