"""What all commands share: options once, devices, dtypes and seeds, files checked before work, options of methods."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner, Result

from fxgrad.commands import cli
from fxgrad.commands.parsing import Command, input_file, output_file
from fxgrad.commands.terminal import check_output
from fxgrad.data.models import load_model
from fxgrad.errors import InputError
from fxgrad.evaluate.methods import method_options

NET = """
import torch
from torch import nn

def net():
    print("built")
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    model.default_cfg = dict(input_size=(3, 4, 4), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0)
    return model
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a module of one factory, which says when it is called."""
    (tmp_path / "said.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("said", None)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, list(arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "said:net", "--json", "absent/a.json"], "absent/a.json cannot be written: there is no folder absent."),
        (["convert", "said:net", "--json", "."], ". cannot be written: that is a folder."),
        (["export", "said:net", "-o", "x.bin"], "x.bin must end in one of .onnx, .pt2, .aoti: the ending says which"),
        (["check", "said:net", "--rules", "nonsense"], "there is no policy 'nonsense'. Shipped: alilrp, "),
        (["check", "said:net", "--rules", "gradient", "--rules", "attnlrp"], "is already set by rules/gradient.toml. Keep one"),
        (["check", "said:net", "--rules", "gamma (gama = 1)"], "there is no parameter 'gama'; the policy takes gamma, reference."),
        (["evaluate", "said:net", "--policy", "gamma (1)"], "'1' is not written as name = number, as in 'gamma (gamma = 0.5)'"),
        (["check", "said:net", "--device", "abacus"], "--device abacus is not here; there is cpu"),
        (["check", "said:net", "--device", "cuda:77"], "--device cuda:77 is not here; there is cpu"),
        (["check", "said:net", "--seed", "1", "--seed", "2"], "--seed is given more than once, and only one can count. Give"),
        (["run", "absent.onnx", "cat.png"], "absent.onnx cannot be read: no such file."),
        (["run", "said.py", "cat.png", "-o", "a.bmp"], "a.bmp must end in one of .png, .pdf, .svg: the ending says"),
        (["check", "said:net", "--checkpoint", "absent.pth"], "checkpoint absent.pth cannot be read by torch.load"),
        (["evaluate", "said:net", "--policy", "nonsense"], "there is no policy 'nonsense'. Shipped: alilrp, "),
        (["evaluate", "said:net", "--values", "a.csv"], "a.csv must end in one of .npz"),
        (["export", "said:net", "-o", "a.onnx", "--output", "b.onnx"], "--output is given more than once"),
    ],
)  # fmt: skip
def test_mistakes_are_errors_before_the_model_is_loaded(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "") and result.stderr.startswith("error: ")
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_a_policy_takes_parameters_on_the_command_line() -> None:
    result = run("check", "said:net", "--rules", "gamma (gamma = 0.5)")
    assert result.exit_code == 0 and "gamma (gamma = 0.5)" in result.output


def test_several_values_stay_where_several_are_meant(here: Path) -> None:
    (here / "rows.toml").write_text('[squash]\n"aten.i0" = { carrier = "self" }\n')
    result = run("check", "said:net", "--rules", "gradient", "--rules", "rows.toml", "--randomize", "--randomize")
    assert result.exit_code == 0, result.output


def test_every_command_refuses_a_second_value() -> None:
    for name in cli.COMMANDS:
        assert isinstance(getattr(importlib.import_module(f"fxgrad.commands.{name}"), name), Command), name


def test_files_are_checked_for_what_they_are(here: Path) -> None:
    (here / "folder").mkdir()
    (here / "file").write_text("")
    check_output("a.png", ".png")
    check_output("folder", ".png", folder=True)
    check_output("new", ".png", folder=True)
    for path, message in (
        (
            "a.bmp",
            "a.bmp must end in one of .png, .svg: the ending says which format to write; without an ending it is",
        ),
        ("file", "file cannot be written: that is a file"),
        ("no/new", "no/new cannot be written: there is no folder no"),
    ):
        with pytest.raises(InputError, match=message):
            check_output(path, ".png", ".svg", folder=True)
    option = click.Option(["--a"])
    context = click.Context(click.Command("c"))
    assert output_file(".png")(context, option, None) is None and input_file(context, option, "file") == "file"
    for path, message in (("absent", "absent cannot be read: no such file"), ("folder", "it is a folder")):
        with pytest.raises(InputError, match=message):
            input_file(context, option, path)


def test_a_model_comes_in_its_place() -> None:
    loaded = load_model("said:net", device="meta", dtype=torch.float64)
    for tensor in (next(loaded.model.parameters()), loaded.example()):
        assert (tensor.device.type, tensor.dtype) == ("meta", torch.float64)
    half = load_model("said:net", dtype=torch.bfloat16)
    assert half.example(3).dtype == torch.bfloat16 and half.model(half.example()).dtype == torch.bfloat16


def test_the_seed_decides_random_weights_and_nothing_else() -> None:
    torch.manual_seed(77)
    before = torch.get_rng_state()
    one, same, other = (load_model("timm:test_vit", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [loaded.model.state_dict()["head.weight"] for loaded in (one, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(one.example(), same.example()) and not torch.equal(one.example(), other.example())
    assert (one.described_weights, other.described_weights) == ("random weights (seed 1)", "random weights (seed 2)")


def test_options_of_methods() -> None:
    found = method_options(["smoothgrad", "saliency", "gradcam"], ["samples=5", "gradcam.layer=blocks.1", "prefix=2"])
    assert found == {
        "smoothgrad": {"samples": 5, "prefix": 2},
        "saliency": {"prefix": 2},
        "gradcam": {"layer": "blocks.1", "prefix": 2},
    }
    assert method_options(["smoothgrad", "saliency"], [], seed=3) == {"smoothgrad": {"seed": 3}, "saliency": {}}
    assert method_options(["smoothgrad"], ["seed=4"], seed=3) == {"smoothgrad": {"seed": 4}}
    for option, message in (
        ("samples=five", r"its value is no literal of Python \(malformed"),
        ("sample=5", "smoothgrad has no option 'sample'; it takes .*samples.*; saliency has no option 'sample'"),
        ("layer=a", "saliency has no option 'layer'"),
        ("nonsense.samples=5", "there is no such method"),
        ("samples", "its value is no literal"),
    ):
        with pytest.raises(InputError, match=message):
            method_options(["smoothgrad", "saliency"], [option])
