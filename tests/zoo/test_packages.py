"""The suite of packages: recipes are data, packages that are absent cost nothing, models that fail are not counted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxgrad import zoo
from fxgrad.errors import InputError
from fxgrad.zoo import suites
from fxgrad.zoo.case import Built, Case
from fxgrad.zoo.measure import measure
from fxgrad.zoo.packages import PACKAGES, cases, missing
from fxgrad.zoo.packages.recipe import Package, Recipe, flags, floats, ints, itself, make, ones, recipe
from fxgrad.zoo.rows import Row
from fxgrad.zoo.runs import Unfit, runnable

ROOT = Path(__file__).parents[2]
NET = make("torch.nn:Sequential", make("torch.nn:Linear", 3, 4), make("torch.nn:GELU"))
FAKE = Package("fake", "torch", {"net": recipe(NET, floats(3)), "wide/net": recipe(NET, floats(5, 3))})
ABSENT = Package("fake-absent", "fake_absent", {"net": recipe(NET, floats(3))}, needs=("fake-part",))


# The recipes


def test_recipes_are_read_without_the_packages() -> None:
    code = (
        "import sys; before = set(sys.modules); from fxgrad.zoo.packages import PACKAGES, cases\n"
        "named = [case.name for package in PACKAGES.values() for case in cases(package)]\n"
        "assert len(named) == len(set(named)) > 500\n"
        "print(*({p.imported for p in PACKAGES.values()} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "" and done.stderr == ""


@pytest.mark.parametrize("package", PACKAGES.values(), ids=PACKAGES)
def test_every_recipe_says_what_it_calls(package: Package) -> None:
    assert package.recipes and all(isinstance(found, Recipe) for found in package.recipes.values())
    for found in package.recipes.values():
        assert found.args or found.kwargs, "a model without inputs"
        module, _, attribute = found.model.path.partition(":")
        assert module and attribute


def test_a_recipe_is_built_from_data() -> None:
    found = recipe(
        make("torch.nn:Bilinear", 3, 2, 4), floats(3), floats(2).whole(), mask=flags(2), ids=ints(5, below=9, start=4)
    )
    torch.manual_seed(0)
    model, args, kwargs, *_ = found.build()
    assert isinstance(model, nn.Bilinear) and not model.training
    assert [a.shape for a in args] == [(2, 3), (2,)] and kwargs["mask"].dtype is torch.bool
    assert kwargs["ids"].shape == (2, 5) and kwargs["ids"].min() >= 4 and kwargs["ids"].max() < 9
    torch.manual_seed(0)
    assert torch.equal(found.build().args[0], args[0])
    assert itself("torch.nn:GELU")() is nn.GELU and ones(1, dtype="int64")().tolist() == [[1], [1]]


def test_another_method_is_the_forward() -> None:
    model, args, *_ = recipe(make("torch.nn:Linear", 3, 3), floats(3)).calling("extra_repr").build()
    assert model.forward.__name__ == "forward" and model.module.weight.shape == (3, 3)  # type: ignore[union-attr]
    with pytest.raises(TypeError, match="extra_repr"):
        model(*args)


# The suite


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    PACKAGES_BEFORE = dict(PACKAGES)
    monkeypatch.setattr("fxgrad.zoo.packages.PACKAGES", {"fake": FAKE, "fake-absent": ABSENT})
    monkeypatch.setattr(suites, "PACKAGES", {"fake": FAKE, "fake-absent": ABSENT})
    assert PACKAGES_BEFORE == PACKAGES


@pytest.mark.usefixtures("fakes")
def test_a_package_that_is_absent_is_skipped(capsys: Any) -> None:
    found = zoo.suite("packages")
    assert [(case.name, case.family) for case in found] == [("fake:net", "net"), ("fake:wide/net", "wide")]
    assert capsys.readouterr().err == "skipped fake-absent, 1 models: pip install fake-absent fake-part\n"
    assert missing(ABSENT) == ["fake-absent", "fake-part"] and next(cases(ABSENT)).package == "fake-absent"
    with pytest.raises(InputError, match="fake-absent:net needs what is not installed: pip install fake-absent fake-p"):
        zoo.named("fake-absent:net")
    with pytest.raises(InputError, match=r"fake has no model 'nett'. Close to it: fake:net"):
        zoo.named("fake:nett")


def test_no_package_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "PACKAGES", {"fake-absent": ABSENT})
    with pytest.raises(InputError, match=r"none of the packages is installed. One of them: pip install fake-absent"):
        zoo.suite("packages")


@pytest.mark.usefixtures("fakes")
def test_fakes_run_through() -> None:
    rows = [measure(case) for case in zoo.suite("packages")]
    assert all(row.passed and row.batches == "1, 2" for row in rows), rows
    assert [row.input for row in rows] == ["3", "5x3"]
    again = measure(zoo.named("fake:net"))
    assert (again.completeness_error, again.plain_error) == (rows[0].completeness_error, rows[0].plain_error)


# Models that do not run themselves


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("it does not\nwork")


class Draws(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class MakesItsOwn(nn.Module):
    """Multiplies by a matrix of torch's default dtype, which a float64 model cannot."""

    def forward(self, x: Tensor) -> Tensor:
        return (x @ torch.eye(3)).tanh()


class OnlyFloat32(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype is torch.float32
        return x.tanh()


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.weight.dtype) * self.weight).real


def row_of(model: nn.Module) -> Row:
    return measure(Case("m:own", "m", lambda: Built(model.eval(), (torch.randn(2, 3),), {})))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Fails(), "OwnForwardFails: RuntimeError: it does not"),
        (Draws(), "OwnForwardRandom: two calls on the same example give different outputs"),
        (nn.Threshold(1e9, float("inf")), "OwnForwardFails: its output is not finite"),
    ],
)
def test_what_is_not_counted(model: nn.Module, reason: str) -> None:
    row = row_of(model)
    assert row.reason == reason and not row.counted and not row.passed and row.input == "3"
    good = Row("m:good", "m", forward_identical=True, completeness_error=0.0)
    assert zoo.summary([row, good]).splitlines()[:2] == [
        "1 of 1 models pass",
        "not counted: 1 that fail themselves or are random",
    ]
    page = zoo.page({"mine": [row, good]})
    assert "**1 of 1 models convert" in page and "<summary>mine: 1 of 1 " in page
    assert "## Not counted: the model itself fails or is random" in page and "## Not converted" not in page


def test_a_model_runs_in_the_dtype_that_it_takes() -> None:
    before = torch.get_default_dtype()
    row = row_of(MakesItsOwn())
    assert row.passed and row.reduced == "default dtype float64" and row.precision == "float64"
    row = row_of(OnlyFloat32())
    assert row.reduced == "in float32" and row.precision == "float32" and row.forward_identical
    assert torch.get_default_dtype() is before


def test_a_model_that_writes_to_its_example() -> None:
    class Writes(nn.Module):
        def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
            features["out"] = features["x"].tanh()
            return features

    row = measure(Case("m:writes", "m", lambda: Built(Writes().eval(), ({"x": torch.randn(2, 3)},), {})))
    assert row.passed and row.batches == "1, 2", row


def test_complex_weights_stay_complex() -> None:
    model = Complex().eval()
    with runnable(model, (torch.ones(2, 3),), {}) as ((x,), _, note):
        assert model.weight.dtype is torch.complex128 and x.dtype is torch.float64 and note == ""


def test_the_first_failure_is_said() -> None:
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError(f"not {x.dtype}")

    with (
        pytest.raises(Unfit, match=r"OwnForwardFails: ValueError: not torch.float64"),
        runnable(Picky(), (torch.ones(2),), {}),
    ):
        pass
